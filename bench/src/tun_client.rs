//! TCP clients behind a TUN interface, whose last ACK of the handshake takes as long as they are told.

use crate::packet::{ACK, SYN, Segment};
use crate::tun::{DelayArgs, Endpoint, Held, Tun, TunArgs};
use crate::{Error, Result, print};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

/// The clients' ports begin here.
const FIRST_PORT: u16 = 10_000;

/// The interface to make, whom to connect to, and how late.
#[derive(Debug, Clone, clap::Args)]
pub struct TunClientArgs {
    /// The interface.
    #[command(flatten)]
    pub tun: TunArgs,
    /// Port to connect to, at the interface's own address
    #[arg(long)]
    pub port: u16,
    /// Connects, all at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=50_000))]
    pub count: u16,
    /// How long each SYN-ACK waits for its ACK, from the SYN.
    #[command(flatten)]
    pub delay: DelayArgs,
}

/// The first line: the interface is up, and the SYNs are sent.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunClientReady {
    /// Connects asked for.
    pub syns: u64,
}

/// What was done.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunClientReport {
    /// SYNs sent.
    pub syns: u64,
    /// SYN-ACKs that answered them.
    pub syn_acks: u64,
    /// SYN-ACKs that came again.
    pub retransmitted_syn_acks: u64,
    /// ACKs sent, which end the handshakes.
    pub acks: u64,
}

#[derive(Debug, Default)]
struct Clients {
    delay: DelayArgs,
    asked: HashMap<u16, Instant>,
    answered: HashSet<Segment>,
    pending: Held,
    report: TunClientReport,
}

impl Clients {
    /// The SYN of a client.
    fn syn(&mut self, from: SocketAddrV4, to: SocketAddrV4, now: Instant) -> Segment {
        self.report.syns += 1;
        self.asked.insert(from.port(), now);
        Segment {
            from,
            to,
            sequence: 1,
            acknowledgement: 0,
            flags: SYN,
            data_bytes: 0,
        }
    }
}

impl Endpoint for Clients {
    fn take(&mut self, segment: Segment, now: Instant) -> Option<Segment> {
        if segment.flags & (SYN | ACK) != SYN | ACK {
            return segment.answer();
        }
        if !self.answered.insert(segment) {
            self.report.retransmitted_syn_acks += 1;
            return None;
        }
        let delay = self.delay.of(self.report.syn_acks);
        self.report.syn_acks += 1;
        // The kernel answers while it is handed the SYN, but its answer may be read late.
        let answered = self.asked.get(&segment.to.port()).copied().unwrap_or(now);
        if let Some(ack) = segment.answer() {
            self.pending.hold(answered + delay, ack);
        }
        None
    }

    fn due(&mut self, now: Instant) -> Option<Segment> {
        let ack = self.pending.due(now)?;
        self.report.acks += 1;
        Some(ack)
    }

    fn next_due(&self) -> Option<Instant> {
        self.pending.next()
    }
}

/// Makes the interface in the current network namespace, sends the SYNs, prints [`TunClientReady`], and goes on until
/// standard input closes, which also removes the interface.
///
/// # Errors
/// When the interface cannot be made, or does not take a packet.
pub fn run(args: &TunClientArgs) -> Result<TunClientReport> {
    let (address, prefix) = args.tun.addr;
    let tun = Tun::make(&args.tun)?;
    let client = neighbour(address, prefix)?;
    let mut clients = Clients {
        delay: args.delay.clone(),
        ..Clients::default()
    };
    for port in FIRST_PORT..FIRST_PORT + args.count {
        let syn = clients.syn(
            SocketAddrV4::new(client, port),
            SocketAddrV4::new(address, args.port),
            Instant::now(),
        );
        tun.send(&syn)?;
    }
    print(&TunClientReady {
        syns: clients.report.syns,
    })?;
    tun.serve(&mut clients)?;
    Ok(clients.report)
}

/// Another address of the same network.
fn neighbour(address: Ipv4Addr, prefix: u8) -> Result<Ipv4Addr> {
    if prefix > 30 {
        return Err(Error::Argument(format!(
            "--addr {address}/{prefix}: allowed are prefixes up to 30, for a network with room for a client"
        )));
    }
    let bits = address.to_bits();
    // The two addresses in the middle of a /30 are the interface's and its neighbour's.
    let other = if bits & 3 == 1 {
        bits + 1
    } else {
        bits & !3 | 1
    };
    Ok(Ipv4Addr::from_bits(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::FIN;
    use std::time::Duration;

    fn addresses() -> (SocketAddrV4, SocketAddrV4) {
        (
            "10.99.0.2:10000".parse().unwrap(),
            "10.99.0.1:80".parse().unwrap(),
        )
    }

    #[test]
    fn a_syn_ack_is_answered_once_and_not_before_its_time() {
        let (client, server) = addresses();
        let delay = DelayArgs {
            delay_ms: 70,
            delay_to_ms: None,
        };
        let mut clients = Clients {
            delay,
            ..Clients::default()
        };
        let start = Instant::now();
        let syn_ack = clients.syn(client, server, start).answer().unwrap();
        let read = start + Duration::from_millis(30);
        assert_eq!(clients.take(syn_ack, read), None);
        assert_eq!(clients.take(syn_ack, read), None);
        assert_eq!(clients.due(start + Duration::from_micros(69_999)), None);
        let ack = clients.due(start + Duration::from_millis(70)).unwrap();
        assert_eq!((ack.from, ack.to, ack.flags), (client, server, ACK));
        assert_eq!(
            (ack.sequence, ack.acknowledgement),
            (2, syn_ack.sequence + 1)
        );
        let expected = TunClientReport {
            syns: 1,
            syn_acks: 1,
            retransmitted_syn_acks: 1,
            acks: 1,
        };
        assert_eq!(clients.report, expected);
    }

    #[test]
    fn a_fin_is_answered_at_once() {
        let (client, server) = addresses();
        let mut clients = Clients::default();
        let mut fin = clients
            .syn(client, server, Instant::now())
            .answer()
            .unwrap();
        fin.flags = FIN | ACK;
        let answer = clients.take(fin, Instant::now()).unwrap();
        assert_eq!(answer.flags, FIN | ACK);
    }

    #[test]
    fn the_neighbour_is_in_the_same_network() {
        let neighbour = |address: &str, prefix| neighbour(address.parse().unwrap(), prefix);
        for (address, expected) in [
            ("10.99.0.1", "10.99.0.2"),
            ("10.99.0.2", "10.99.0.1"),
            ("10.99.0.7", "10.99.0.5"),
        ] {
            let found = neighbour(address, 30).unwrap();
            assert_eq!(found.to_string(), expected);
        }
        assert_eq!(
            neighbour("10.99.0.1", 31).unwrap_err().to_string(),
            "--addr 10.99.0.1/31: allowed are prefixes up to 30, for a network with room for a client"
        );
    }
}
