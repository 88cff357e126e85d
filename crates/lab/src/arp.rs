//! One ARP question and its answer (RFC 826), from the calling thread's namespace.

use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use kernel::{IfName, Mac};
use linux::capture::{Capture, Filter};
use linux::link;
use linux::request::Socket;

/// Asks who has `target`; the answering MAC and the time it took, or `None` if nobody answers in time.
pub fn who_has(device: &str, own: Ipv4Addr, target: Ipv4Addr, patience: Duration) -> io::Result<Option<(Mac, Duration)>> {
    let device = IfName::from(device);
    let details = link::find(&mut Socket::open()?, &device).map_err(|error| io::Error::other(error.to_string()))?;
    let missing = || io::Error::other(format!("no Ethernet device {device}"));
    let mac = details.and_then(|details| details.link.mac).ok_or_else(missing)?;
    let mut capture = Capture::open(Some(&device), Filter::Arp)?;
    let started = Instant::now();
    capture.send(&question(mac, own, target))?;
    loop {
        let Some(left) = patience.checked_sub(started.elapsed()) else { return Ok(None) };
        let Some(frame) = capture.next(left)? else { continue };
        if let Some(answer) = answer(&frame.bytes, target) {
            return Ok(Some((answer, started.elapsed())));
        }
    }
}

const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
/// Ethernet, IPv4, lengths 6 and 4.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

fn question(mac: Mac, own: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let ethernet = [&[0xff; 6][..], &mac.0, &ETHERTYPE_ARP].concat();
    let request = [&ETHERNET_IPV4[..], &[0, 1], &mac.0, &own.octets(), &[0; 6], &target.octets()].concat();
    [ethernet, request].concat()
}

/// The sender of a reply about `target`.
fn answer(frame: &[u8], target: Ipv4Addr) -> Option<Mac> {
    let arp = frame.get(14..)?.first_chunk::<28>()?;
    let is_reply = frame[12..14] == ETHERTYPE_ARP && arp[..6] == ETHERNET_IPV4 && arp[6..8] == [0, 2];
    let mac = arp[8..14].try_into().ok()?;
    (is_reply && arp[14..18] == target.octets()).then_some(Mac(mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reply_about_the_target_is_an_answer() {
        let (own, target) = (Ipv4Addr::new(192, 168, 0, 5), Ipv4Addr::new(169, 254, 1, 1));
        let mut frame = question(Mac([2, 0, 0, 0, 0, 1]), own, target);
        assert_eq!(frame.len(), 42);
        assert_eq!(answer(&frame, own), None, "a question is no answer");
        frame[21] = 2;
        assert_eq!(answer(&frame, own), Some(Mac([2, 0, 0, 0, 0, 1])));
        assert_eq!(answer(&frame, target), None, "an answer about somebody else");
        assert_eq!(answer(&frame[..41], own), None, "cut short");
    }
}
