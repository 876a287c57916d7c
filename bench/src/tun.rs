//! A TUN interface whose other end is a program: what it sends, and how long it holds that back.

use crate::lifeline::{self, Wake};
use crate::packet::Segment;
use crate::{Error, Result};
use rustix::fd::AsFd;
use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use tun_rs::{DeviceBuilder, SyncDevice};

/// Longer than any packet that a TUN interface of the usual 1500 bytes hands over.
const PACKET_BYTES: usize = 2048;

/// The interface to make.
#[derive(Debug, Clone, clap::Args)]
pub struct TunArgs {
    /// Name of the interface to make
    #[arg(long)]
    pub name: String,
    /// The interface's own address and prefix; the rest of that network is behind it
    #[arg(long, value_name = "ADDR/PREFIX", value_parser = parse_network)]
    pub addr: (Ipv4Addr, u8),
}

fn parse_network(text: &str) -> std::result::Result<(Ipv4Addr, u8), String> {
    text.split_once('/')
        .and_then(|(address, prefix)| Some((address.parse().ok()?, prefix.parse().ok()?)))
        .filter(|&(_, prefix)| prefix <= 32)
        .ok_or_else(|| {
            "allowed is an IPv4 address with its prefix, such as 10.99.0.1/24".to_owned()
        })
}

/// How long an answer is held back.
#[derive(Debug, Default, Clone, clap::Args)]
pub struct DelayArgs {
    /// How long each answer is held back
    #[arg(long, default_value_t = 0)]
    pub delay_ms: u64,
    /// Hold answers back differently long, from --delay-ms to so long, evenly on a logarithmic scale
    #[arg(long, value_name = "DELAY_MS")]
    pub delay_to_ms: Option<u64>,
}

impl DelayArgs {
    /// The delay of the answer with this number. Neighbours lie far apart, and any run of them is spread evenly.
    #[must_use]
    pub fn of(&self, number: u64) -> Duration {
        // The steps of the golden ratio, modulo one, in 32 bits.
        const GOLDEN: u64 = 0x9e37_79b9;
        #[expect(clippy::cast_precision_loss, reason = "32 bits and milliseconds fit")]
        let (part, shortest) = (
            (number.wrapping_mul(GOLDEN) & 0xffff_ffff) as f64 / 4_294_967_296.0,
            self.delay_ms.max(1) as f64,
        );
        match self.delay_to_ms {
            None => Duration::from_millis(self.delay_ms),
            #[expect(clippy::cast_precision_loss, reason = "milliseconds fit")]
            Some(longest) => {
                let ratio = longest.max(self.delay_ms.max(1)) as f64 / shortest;
                Duration::from_secs_f64(shortest * ratio.powf(part) / 1000.0)
            }
        }
    }
}

/// Segments that wait for their time.
#[derive(Debug, Default)]
pub(crate) struct Held(VecDeque<(Instant, Segment)>);

impl Held {
    pub(crate) fn hold(&mut self, due: Instant, segment: Segment) {
        let place = self.0.partition_point(|(earlier, _)| *earlier <= due);
        self.0.insert(place, (due, segment));
    }

    /// The next one that is due.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Segment> {
        let &(due, segment) = self.0.front()?;
        (due <= now).then(|| {
            self.0.pop_front();
            segment
        })
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.front().map(|(due, _)| *due)
    }
}

/// What sits at the other end of the interface.
pub(crate) trait Endpoint {
    /// Takes a segment; what it returns is to be sent at once.
    fn take(&mut self, segment: Segment, now: Instant) -> Option<Segment>;
    /// The next segment that is due.
    fn due(&mut self, now: Instant) -> Option<Segment>;
    /// When the next one will be.
    fn next_due(&self) -> Option<Instant>;
}

/// The interface. It goes with this value.
pub(crate) struct Tun(SyncDevice);

impl Tun {
    /// Makes the interface in the current network namespace.
    pub(crate) fn make(args: &TunArgs) -> Result<Self> {
        let (address, prefix) = args.addr;
        DeviceBuilder::new()
            .name(&args.name)
            .ipv4(address, prefix, None)
            .build_sync()
            .map(Self)
            .map_err(Error::io(format!("make the TUN interface {}", args.name)))
    }

    pub(crate) fn send(&self, segment: &Segment) -> Result<()> {
        self.0
            .send(&segment.to_packet())
            .map(drop)
            .map_err(Error::io("write to the TUN interface"))
    }

    /// Lets an endpoint answer until standard input closes.
    pub(crate) fn serve(&self, endpoint: &mut impl Endpoint) -> Result<()> {
        let mut packet = [0; PACKET_BYTES];
        loop {
            while let Some(segment) = endpoint.due(Instant::now()) {
                self.send(&segment)?;
            }
            let timeout = endpoint
                .next_due()
                .map(|due| due.saturating_duration_since(Instant::now()));
            match lifeline::wait(self.0.as_fd(), timeout)? {
                Wake::Readable => {
                    let length = self
                        .0
                        .recv(&mut packet)
                        .map_err(Error::io("read from the TUN interface"))?;
                    let answer = Segment::parse(&packet[..length])
                        .and_then(|segment| endpoint.take(segment, Instant::now()));
                    if let Some(answer) = answer {
                        self.send(&answer)?;
                    }
                }
                Wake::TimedOut => {}
                Wake::Closed => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_fixed_delay_is_the_same_for_all() {
        let fixed = DelayArgs {
            delay_ms: 70,
            delay_to_ms: None,
        };
        for number in [0, 1, 1_000_000] {
            assert_eq!(fixed.of(number), Duration::from_millis(70));
        }
        assert_eq!(DelayArgs::default().of(3), Duration::ZERO);
    }

    #[test]
    fn delays_spread_evenly_on_a_logarithmic_scale() {
        let spread = DelayArgs {
            delay_ms: 10,
            delay_to_ms: Some(160),
        };
        let mut octaves = [0; 4];
        for number in 0..400 {
            let seconds = spread.of(number).as_secs_f64();
            assert!((0.01..0.16).contains(&seconds), "{seconds}");
            let octave = octaves
                .iter_mut()
                .zip([0.02, 0.04, 0.08, 0.16])
                .find(|(_, end)| seconds < *end);
            *octave.unwrap().0 += 1;
        }
        for count in octaves {
            assert!((98..=102).contains(&count), "{octaves:?}");
        }
    }

    #[test]
    fn what_is_held_leaves_in_the_order_of_its_time() {
        let segment = |sequence| Segment {
            from: "10.99.0.1:40000".parse().unwrap(),
            to: "10.99.0.2:80".parse().unwrap(),
            sequence,
            acknowledgement: 0,
            flags: 0,
            data_bytes: 0,
        };
        let start = Instant::now();
        let mut held = Held::default();
        for (sequence, ms) in [(1, 30), (2, 10), (3, 30), (4, 20)] {
            held.hold(start + Duration::from_millis(ms), segment(sequence));
        }
        assert_eq!(held.next(), Some(start + Duration::from_millis(10)));
        assert_eq!(held.due(start + Duration::from_micros(9_999)), None);
        let end = start + Duration::from_millis(30);
        let order: Vec<_> = std::iter::from_fn(|| held.due(end))
            .map(|segment| segment.sequence)
            .collect();
        assert_eq!(order, [2, 4, 1, 3]);
        assert_eq!(held.next(), None);
    }
}
