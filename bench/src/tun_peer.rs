//! A TCP peer behind a TUN interface, whose answers to SYNs take as long as it is told.

use crate::packet::Segment;
use crate::tun::{DelayArgs, Endpoint, Held, Tun, TunArgs};
use crate::{Result, print};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::time::Instant;

/// The interface to make, and how its peer answers: for every address of the network but the interface's own.
#[derive(Debug, Clone, clap::Args)]
pub struct TunPeerArgs {
    /// The interface.
    #[command(flatten)]
    pub tun: TunArgs,
    /// How long each SYN waits for its answer.
    #[command(flatten)]
    pub delay: DelayArgs,
    /// Answer nothing
    #[arg(long, conflicts_with_all = ["delay_ms", "delay_to_ms"])]
    pub silent: bool,
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
    delay: DelayArgs,
    silent: bool,
    asked: HashSet<Segment>,
    pending: Held,
    report: TunReport,
}

impl Endpoint for Peer {
    fn take(&mut self, segment: Segment, now: Instant) -> Option<Segment> {
        if !segment.is_syn() {
            return segment.answer().filter(|_| !self.silent);
        }
        if !self.asked.insert(segment) {
            self.report.retransmitted_syns += 1;
            return None;
        }
        let delay = self.delay.of(self.report.syns);
        self.report.syns += 1;
        if let Some(answer) = segment.answer().filter(|_| !self.silent) {
            self.pending.hold(now + delay, answer);
        }
        None
    }

    fn due(&mut self, now: Instant) -> Option<Segment> {
        let answer = self.pending.due(now)?;
        self.report.syn_acks += 1;
        Some(answer)
    }

    fn next_due(&self) -> Option<Instant> {
        self.pending.next()
    }
}

/// Makes the interface in the current network namespace, prints [`TunReady`], and answers until standard input closes,
/// which also removes the interface.
///
/// # Errors
/// When the interface cannot be made, or does not take a packet.
pub fn run(args: &TunPeerArgs) -> Result<TunReport> {
    let tun = Tun::make(&args.tun)?;
    print(&TunReady { ready: true })?;
    let mut peer = Peer {
        delay: args.delay.clone(),
        silent: args.silent,
        ..Peer::default()
    };
    tun.serve(&mut peer)?;
    Ok(peer.report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{ACK, FIN, SYN};
    use std::time::Duration;

    fn segment(sequence: u32, flags: u8) -> Segment {
        Segment {
            from: "10.99.0.1:40000".parse().unwrap(),
            to: "10.99.0.2:80".parse().unwrap(),
            sequence,
            acknowledgement: 9,
            flags,
            data_bytes: 0,
        }
    }

    #[test]
    fn a_syn_is_answered_once_and_not_before_its_time() {
        let delay = Duration::from_millis(70);
        let mut peer = Peer {
            delay: DelayArgs {
                delay_ms: 70,
                delay_to_ms: None,
            },
            ..Peer::default()
        };
        let start = Instant::now();
        assert_eq!(peer.take(segment(5, SYN), start), None);
        assert_eq!(peer.take(segment(5, SYN), start), None);
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
            delay: DelayArgs {
                delay_ms: 1000,
                delay_to_ms: None,
            },
            ..Peer::default()
        };
        let answer = peer.take(segment(6, FIN | ACK), Instant::now()).unwrap();
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
        assert_eq!(peer.take(segment(5, SYN), now), None);
        assert_eq!(peer.take(segment(6, FIN | ACK), now), None);
        assert_eq!(peer.due(now), None);
        assert_eq!(
            peer.report,
            TunReport {
                syns: 1,
                ..TunReport::default()
            }
        );
    }
}
