//! What memory vectors are computed in, for `/metrics`. In: what the engine says of a device with memory of its own, and Linux's files of
//! the machine's. Out: gauges by device; where nobody knows, nothing.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::gauge::ConstGauge;

use super::metric_names as names;
use super::metrics::by_label;
use super::process::field;

/// The device that is the machine itself.
const HOST: &str = "cpu";

/// Bytes of memory, whoever uses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// In use.
    pub used: u64,
    /// There are.
    pub total: u64,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Device {
    device: String,
}

static DEVICE: Mutex<Option<(String, DeviceMemory)>> = Mutex::new(None);

/// Says how much memory a device has and how much of that is in use now.
pub fn set_device_memory(device: &str, memory: DeviceMemory) {
    let mut known = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    *known = Some((device.to_owned(), memory));
}

/// Tells what was said last, and reads the machine's at each scrape.
#[derive(Debug)]
pub(super) struct MemoryCollector;

impl Collector for MemoryCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let host = of_host(Path::new("/"));
        let host = host.map(|memory| (HOST.to_owned(), memory));
        let device = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
        let known: Vec<_> = host.into_iter().chain(device.clone()).collect();
        drop(device);
        let each = |bytes: fn(&DeviceMemory) -> u64| {
            let known = known.iter().cloned();
            known.map(move |(device, memory)| {
                let bytes = i64::try_from(bytes(&memory)).unwrap_or(i64::MAX);
                (Device { device }, ConstGauge::new(bytes))
            })
        };
        by_label(
            &mut encoder,
            names::DEVICE_MEMORY_USED,
            each(|memory| memory.used),
        )?;
        by_label(
            &mut encoder,
            names::DEVICE_MEMORY,
            each(|memory| memory.total),
        )
    }
}

/// What the machine under `root` has, or what the process's control group may have of it, where that is less.
///
/// # Source
/// proc_meminfo(5); Linux, `Documentation/admin-guide/cgroup-v2.rst`: `memory.max`, `memory.current`, and `inactive_file` of
/// `memory.stat`, which is given back before anything is short of memory.
fn of_host(root: &Path) -> Option<DeviceMemory> {
    let read = |path: &str| fs::read_to_string(root.join(path)).ok();
    let machine = read("proc/meminfo")?;
    let total = 1024 * field(&machine, "MemTotal:")?;
    let available = 1024 * field(&machine, "MemAvailable:")?;
    let machine = DeviceMemory {
        used: total.saturating_sub(available),
        total,
    };
    let group = || {
        let groups = read("proc/self/cgroup")?;
        let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let of_group = |file: &str| read(&format!("sys/fs/cgroup/{path}/{file}"));
        // The word "max" is no number: then there is no limit.
        let total = of_group("memory.max")?.trim().parse().ok()?;
        let current: u64 = of_group("memory.current")?.trim().parse().ok()?;
        let unused = field(&of_group("memory.stat")?, "inactive_file ")?;
        let used = current.saturating_sub(unused);
        Some(DeviceMemory { used, total })
    };
    let group = group().filter(|group| group.total < machine.total);
    Some(group.unwrap_or(machine))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics;

    /// A machine of 1000 KiB of which 400 are available, and a control group with files of its own.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        let common = [
            ("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 400 kB\n"),
            ("proc/self/cgroup", "1:cpu:/other\n0::/a/b\n"),
        ];
        for (name, text) in common.iter().chain(files) {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        root
    }

    fn group(max: &str) -> tempfile::TempDir {
        machine(&[
            ("sys/fs/cgroup/a/b/memory.max", max),
            ("sys/fs/cgroup/a/b/memory.current", "90000\n"),
            (
                "sys/fs/cgroup/a/b/memory.stat",
                "anon 5\ninactive_file 30000\n",
            ),
        ])
    }

    #[test]
    fn a_machine_s_memory_is_its_own_unless_its_group_may_have_less() {
        let whole = Some(DeviceMemory {
            used: 600 * 1024,
            total: 1000 * 1024,
        });
        for root in [machine(&[]), group("max\n"), group("2000000\n")] {
            assert_eq!(of_host(root.path()), whole);
        }
        let limited = Some(DeviceMemory {
            used: 60_000,
            total: 100_000,
        });
        assert_eq!(of_host(group("100000\n").path()), limited);
        assert_eq!(of_host(Path::new("/nowhere")), None);
    }

    #[test]
    fn a_device_is_told_beside_the_machine() {
        let memory = DeviceMemory { used: 5, total: 12 };
        set_device_memory("cuda:7", memory);
        let text = metrics().render(false);
        for line in [
            "manifold_device_memory_used_bytes{device=\"cuda:7\"} 5",
            "manifold_device_memory_bytes{device=\"cuda:7\"} 12",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        let host = "manifold_device_memory_bytes{device=\"cpu\"}";
        assert_eq!(text.contains(host), Path::new("/proc/meminfo").exists());
    }
}
