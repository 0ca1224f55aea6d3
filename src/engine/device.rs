//! Which device, in which number format: decided once, here. The only place outside `kernels` that asks what was built in.

use std::time::{Duration, Instant};

use candle_core::{DType, Device};

use super::{DeviceChoice, DtypeChoice, EngineError};
use crate::kernels::{Kernels, Precision, Simd};
use crate::telemetry::{self, DeviceMemory};

/// A device that was picked, with the words people know it by.
pub(super) struct Picked {
    pub(super) kernels: Kernels,
    pub(super) device: String,
    pub(super) dtype: &'static str,
}

/// How much time is at least between two looks at a device's memory.
const MEMORY_PERIOD: Duration = Duration::from_secs(1);

/// Tells how much of a device's memory is in use. Its thread asks, for nobody else touches the device.
pub(super) struct MemoryProbe {
    device: Device,
    name: String,
    told: Option<Instant>,
}

impl MemoryProbe {
    pub(super) fn new(picked: &Picked) -> Self {
        MemoryProbe {
            device: picked.kernels.device(),
            name: picked.device.clone(),
            told: None,
        }
    }

    /// Tells what is in use now, unless that was done just before.
    pub(super) fn tell(&mut self) {
        if self.told.is_some_and(|told| told.elapsed() < MEMORY_PERIOD) {
            return;
        }
        self.told = Some(Instant::now());
        if let Some(memory) = own_memory(&self.device) {
            telemetry::set_device_memory(&self.name, memory);
        }
    }
}

/// The memory of a device that has its own; an error says nothing that the passes do not say as well.
#[cfg(feature = "cuda")]
fn own_memory(device: &Device) -> Option<DeviceMemory> {
    let stream = device.as_cuda_device().ok()?.cuda_stream();
    let (free, total) = stream.context().mem_get_info().ok()?;
    Some(DeviceMemory {
        used: total.saturating_sub(free) as u64,
        total: total as u64,
    })
}

#[cfg(not(feature = "cuda"))]
fn own_memory(_: &Device) -> Option<DeviceMemory> {
    None
}

/// Picks what was asked for, or the first that is there.
///
/// # Errors
/// [`EngineError::Device`] when the device asked for was not built in or is not present.
pub(super) fn pick(device: DeviceChoice, dtype: DtypeChoice) -> Result<Picked, EngineError> {
    match device {
        DeviceChoice::Cpu => Ok(on_cpu(dtype)),
        DeviceChoice::Cuda(ordinal) => on_device(cuda(ordinal)?, format!("cuda:{ordinal}"), dtype),
        DeviceChoice::Metal => on_device(metal()?, "metal".to_owned(), dtype),
        DeviceChoice::Auto => {
            if let Ok(device) = cuda(0) {
                return on_device(device, "cuda:0".to_owned(), dtype);
            }
            if let Ok(device) = metal() {
                return on_device(device, "metal".to_owned(), dtype);
            }
            Ok(on_cpu(dtype))
        }
    }
}

fn on_cpu(dtype: DtypeChoice) -> Picked {
    // Where the CPU has no bf16 products, bf16 weights are widened and multiplied as f32, so rounding the rest gains nothing.
    let (precision, dtype) = match dtype {
        DtypeChoice::Auto if Simd::detect().multiplies_bf16() => (Precision::Bf16, "bf16"),
        DtypeChoice::Auto | DtypeChoice::F32 => (Precision::F32, "f32"),
        DtypeChoice::Bf16 => (Precision::Bf16, "bf16"),
        DtypeChoice::Int8 => (Precision::Int8, "int8"),
    };
    Picked {
        kernels: Kernels::host(precision),
        device: "cpu".to_owned(),
        dtype,
    }
}

fn on_device(device: Device, name: String, dtype: DtypeChoice) -> Result<Picked, EngineError> {
    let (dtype, spelled) = match dtype {
        DtypeChoice::F32 => (DType::F32, "f32"),
        DtypeChoice::Auto | DtypeChoice::Bf16 => (DType::BF16, "bf16"),
        DtypeChoice::Int8 => {
            return Err(EngineError::Device {
                device: name,
                reason: "int8 is computed on the CPU only; use bf16 or f32 here".to_owned(),
            });
        }
    };
    Ok(Picked {
        kernels: Kernels::Candle { device, dtype },
        device: name,
        dtype: spelled,
    })
}

fn cuda(ordinal: usize) -> Result<Device, EngineError> {
    let name = format!("cuda:{ordinal}");
    if !cfg!(feature = "cuda") {
        return Err(not_built_in(name, "cuda"));
    }
    Device::new_cuda(ordinal).map_err(|error| EngineError::Device {
        device: name,
        reason: error.to_string(),
    })
}

fn metal() -> Result<Device, EngineError> {
    if !cfg!(feature = "metal") {
        return Err(not_built_in("metal".to_owned(), "metal"));
    }
    Device::new_metal(0).map_err(|error| EngineError::Device {
        device: "metal".to_owned(),
        reason: error.to_string(),
    })
}

fn not_built_in(device: String, feature: &str) -> EngineError {
    let reason = format!("this binary was built without it; build with `--features {feature}`");
    EngineError::Device { device, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_device_that_was_not_built_in_is_refused_by_name() {
        let error = pick(DeviceChoice::Cuda(1), DtypeChoice::Auto)
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("cuda:1") && error.contains("--features cuda"),
            "{error}"
        );
    }

    #[test]
    fn the_cpu_takes_bf16_where_it_multiplies_it_and_what_it_is_asked_for_anywhere() {
        let automatic = if Simd::detect().multiplies_bf16() {
            "bf16"
        } else {
            "f32"
        };
        for (choice, name) in [
            (DtypeChoice::Auto, automatic),
            (DtypeChoice::F32, "f32"),
            (DtypeChoice::Bf16, "bf16"),
            (DtypeChoice::Int8, "int8"),
        ] {
            assert_eq!(pick(DeviceChoice::Cpu, choice).unwrap().dtype, name);
        }
    }
}
