//! A TCP peer behind a TUN interface, whose answers to SYNs take as long as it is told.

use crate::lifeline::{self, Wake};
use crate::packet::Segment;
use crate::{Error, Result, print};
use rustix::fd::AsFd;
use serde::{Deserialize, Serialize};
use std::collections::{HashSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use tun_rs::{DeviceBuilder, SyncDevice};

/// Longer than any packet that a TUN interface of the usual 1500 bytes hands over.
const PACKET_BYTES: usize = 2048;

/// The interface to make, and how its peer answers.
#[derive(Debug, Clone, clap::Args)]
pub struct TunPeerArgs {
    /// Name of the interface to make
    #[arg(long)]
    pub name: String,
    /// The interface's own address and prefix; the peer answers for every other address of that network
    #[arg(long, value_name = "ADDR/PREFIX", value_parser = parse_network)]
    pub addr: (Ipv4Addr, u8),
    /// How long each SYN waits for its answer
    #[arg(long, default_value_t = 0)]
    pub delay_ms: u64,
    /// Answer nothing
    #[arg(long, conflicts_with = "delay_ms")]
    pub silent: bool,
}

fn parse_network(text: &str) -> std::result::Result<(Ipv4Addr, u8), String> {
    text.split_once('/')
        .and_then(|(address, prefix)| Some((address.parse().ok()?, prefix.parse().ok()?)))
        .filter(|&(_, prefix)| prefix <= 32)
        .ok_or_else(|| {
            "allowed is an IPv4 address with its prefix, such as 10.99.0.1/24".to_owned()
        })
}

/// The first line: the interface is up.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunReady {
    /// Always true.
    pub ready: bool,
}

/// What was done.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunReport {
    /// Connections asked for.
    pub syns: u64,
    /// SYNs that asked for one of those again.
    pub retransmitted_syns: u64,
    /// SYN-ACKs sent.
    pub syn_acks: u64,
}

/// What the peer knows: who has asked, and whom it has yet to answer.
#[derive(Debug, Default)]
struct Peer {
    delay: Duration,
    silent: bool,
    asked: HashSet<Segment>,
    pending: VecDeque<(Instant, Segment)>,
    report: TunReport,
}

impl Peer {
    /// Takes a packet; what it returns is to be sent at once.
    fn take(&mut self, packet: &[u8], now: Instant) -> Option<Segment> {
        let segment = Segment::parse(packet)?;
        if !segment.is_syn() {
            return segment.answer().filter(|_| !self.silent);
        }
        if !self.asked.insert(segment) {
            self.report.retransmitted_syns += 1;
            return None;
        }
        self.report.syns += 1;
        if let Some(answer) = segment.answer().filter(|_| !self.silent) {
            self.pending.push_back((now + self.delay, answer));
        }
        None
    }

    /// The next answer that is due.
    fn due(&mut self, now: Instant) -> Option<Segment> {
        let &(due, answer) = self.pending.front()?;
        if due > now {
            return None;
        }
        self.pending.pop_front();
        self.report.syn_acks += 1;
        Some(answer)
    }
}

/// Makes the interface in the current network namespace, prints [`TunReady`], and answers until standard input closes,
/// which also removes the interface.
///
/// # Errors
/// When the interface cannot be made, or does not take a packet.
pub fn run(args: &TunPeerArgs) -> Result<TunReport> {
    let (address, prefix) = args.addr;
    let device = DeviceBuilder::new()
        .name(&args.name)
        .ipv4(address, prefix, None)
        .build_sync()
        .map_err(Error::io(format!("make the TUN interface {}", args.name)))?;
    print(&TunReady { ready: true })?;
    let mut peer = Peer {
        delay: Duration::from_millis(args.delay_ms),
        silent: args.silent,
        ..Peer::default()
    };
    let mut packet = [0; PACKET_BYTES];
    loop {
        while let Some(answer) = peer.due(Instant::now()) {
            send(&device, &answer)?;
        }
        let timeout = peer
            .pending
            .front()
            .map(|(due, _)| due.saturating_duration_since(Instant::now()));
        match lifeline::wait(device.as_fd(), timeout)? {
            Wake::Readable => {
                let length = device
                    .recv(&mut packet)
                    .map_err(Error::io("read from the TUN interface"))?;
                if let Some(answer) = peer.take(&packet[..length], Instant::now()) {
                    send(&device, &answer)?;
                }
            }
            Wake::TimedOut => {}
            Wake::Closed => return Ok(peer.report),
        }
    }
}

fn send(device: &SyncDevice, segment: &Segment) -> Result<()> {
    device
        .send(&segment.to_packet())
        .map(drop)
        .map_err(Error::io("write to the TUN interface"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{ACK, FIN, SYN};

    fn packet(sequence: u32, flags: u8) -> Vec<u8> {
        let segment = Segment {
            from: "10.99.0.1:40000".parse().unwrap(),
            to: "10.99.0.2:80".parse().unwrap(),
            sequence,
            acknowledgement: 9,
            flags,
            data_bytes: 0,
        };
        segment.to_packet()
    }

    #[test]
    fn a_syn_is_answered_once_and_not_before_its_time() {
        let delay = Duration::from_millis(70);
        let mut peer = Peer {
            delay,
            ..Peer::default()
        };
        let start = Instant::now();
        assert_eq!(peer.take(&packet(5, SYN), start), None);
        assert_eq!(peer.take(&packet(5, SYN), start), None);
        assert_eq!(peer.due(start + Duration::from_micros(69_999)), None);
        let answer = peer.due(start + delay).unwrap();
        assert_eq!((answer.flags, answer.acknowledgement), (SYN | ACK, 6));
        assert_eq!(peer.due(start + delay * 9), None);
        let expected = TunReport {
            syns: 1,
            retransmitted_syns: 1,
            syn_acks: 1,
        };
        assert_eq!(peer.report, expected);
    }

    #[test]
    fn a_fin_is_answered_at_once() {
        let mut peer = Peer {
            delay: Duration::from_secs(1),
            ..Peer::default()
        };
        let answer = peer.take(&packet(6, FIN | ACK), Instant::now()).unwrap();
        assert_eq!(
            (answer.flags, answer.sequence, answer.acknowledgement),
            (FIN | ACK, 9, 7)
        );
    }

    #[test]
    fn a_silent_peer_only_counts() {
        let mut peer = Peer {
            silent: true,
            ..Peer::default()
        };
        let now = Instant::now();
        assert_eq!(peer.take(&packet(5, SYN), now), None);
        assert_eq!(peer.take(&packet(6, FIN | ACK), now), None);
        assert_eq!(peer.due(now), None);
        assert_eq!(
            peer.report,
            TunReport {
                syns: 1,
                ..TunReport::default()
            }
        );
    }

    #[test]
    fn networks_are_read() {
        assert_eq!(
            parse_network("10.99.0.1/24"),
            Ok((Ipv4Addr::new(10, 99, 0, 1), 24))
        );
        for bad in ["10.99.0.1", "10.99.0.1/33", "fd00::1/64", "x/8", ""] {
            assert!(parse_network(bad).is_err(), "{bad}");
        }
    }
}
