//! Every packet of this network namespace. In: nothing. Out: how many went to addresses that are not public, by address.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// Any protocol, in network order.
const ETH_P_ALL: i32 = (0x0003_u16.to_be()) as i32;
const TCP: u8 = 6;
const UDP: u8 = 17;

type Counts = Arc<Mutex<BTreeMap<String, usize>>>;

/// Watches until it is dropped.
pub(super) struct Capture {
    counts: Counts,
    ended: Arc<AtomicBool>,
}

impl Capture {
    pub(super) fn start() -> Self {
        let protocol = Some(Protocol::from(ETH_P_ALL));
        // Each packet from its IP header on, of every link and in both directions.
        let mut socket = Socket::new(Domain::PACKET, Type::DGRAM, protocol).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        socket.set_recv_buffer_size(64 << 20).unwrap();
        let (counts, ended) = (Counts::default(), Arc::new(AtomicBool::new(false)));
        let (counting, ending) = (Arc::clone(&counts), Arc::clone(&ended));
        std::thread::spawn(move || {
            let mut packet = [0; 256];
            while !ending.load(Ordering::Relaxed) {
                let Ok(read) = socket.read(&mut packet) else {
                    continue;
                };
                if let Some(place) = destination(&packet[..read]) {
                    *counting
                        .lock()
                        .unwrap()
                        .entry(place.to_string())
                        .or_default() += 1;
                }
            }
        });
        Capture { counts, ended }
    }

    /// Packets to where no fetch may lead, so far.
    pub(super) fn at_canaries(&self) -> BTreeMap<String, usize> {
        // What was sent may still wait to be read.
        std::thread::sleep(Duration::from_millis(300));
        self.counts.lock().unwrap().clone()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// Where a TCP or UDP packet goes, if that is no place for fetches.
fn destination(packet: &[u8]) -> Option<IpAddr> {
    let (protocol, address, ports) = match packet.first()? >> 4 {
        4 => {
            let length = usize::from(packet[0] & 15) * 4;
            let bytes: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            (packet[9], IpAddr::V4(Ipv4Addr::from(bytes)), length)
        }
        6 => {
            let bytes: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            (packet[6], IpAddr::V6(Ipv6Addr::from(bytes)), 40)
        }
        _ => return None,
    };
    let port = packet.get(ports + 2..ports + 4)?;
    let port = u16::from_be_bytes([port[0], port[1]]);
    let watched = [TCP, UDP].contains(&protocol) && is_canary(address, port);
    watched.then_some(address)
}

/// Written apart from the server's own tables, from the first octets on.
fn is_canary(address: IpAddr, port: u16) -> bool {
    match address {
        IpAddr::V4(v4) => match v4.octets() {
            // What listens at home beside the server.
            [11, 0, 0, 1] => port == 80 || port == 443,
            [0 | 10 | 127 | 224..=255, ..] | [169, 254, ..] | [192, 168, ..] => true,
            [172, second, ..] => second & 0xf0 == 16,
            [100, second, ..] => second & 0xc0 == 64,
            [198, second, ..] => second & 0xfe == 18,
            [168, 63, 129, 16] => true,
            _ => false,
        },
        // A gateway between the families dials what this embeds.
        IpAddr::V6(v6) if v6.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0] => {
            is_canary(IpAddr::V4(Ipv4Addr::from_bits(v6.to_bits() as u32)), port)
        }
        IpAddr::V6(v6) => {
            v6.is_loopback() || v6.is_unspecified() || v6.segments()[0] & 0xe000 != 0x2000
        }
    }
}
