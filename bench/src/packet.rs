//! TCP over IPv4, as far as a peer needs it that only shakes hands.

use std::net::{Ipv4Addr, SocketAddrV4};

/// FIN: the sender has no more to send.
pub const FIN: u8 = 0x01;
/// SYN: the sender asks for, or agrees to, a connection.
pub const SYN: u8 = 0x02;
/// RST: there is no such connection.
pub const RST: u8 = 0x04;
/// ACK: the acknowledgement number is valid.
pub const ACK: u8 = 0x10;

const IP_HEADER_BYTES: usize = 20;
const TCP_HEADER_BYTES: usize = 20;
const PROTOCOL_TCP: u8 = 6;

/// Where the peer's sequence numbers begin; which value is of no consequence.
const FIRST_SEQUENCE: u32 = 0x5e17_0000;

/// The TCP option that says how much one segment may carry: 1460 bytes.
const MAXIMUM_SEGMENT_SIZE: [u8; 4] = [2, 4, 0x05, 0xb4];

/// What matters of a TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Segment {
    /// The sender.
    pub from: SocketAddrV4,
    /// The receiver.
    pub to: SocketAddrV4,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number; 0 without [`ACK`].
    pub acknowledgement: u32,
    /// Of [`FIN`], [`SYN`], [`RST`] and [`ACK`].
    pub flags: u8,
    /// Bytes of data.
    pub data_bytes: u32,
}

impl Segment {
    /// Reads a segment from an IP packet; none if it is no whole TCP segment over IPv4.
    #[must_use]
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let first = *packet.first()?;
        let ip_header_bytes = usize::from(first & 0x0f) * 4;
        let total_bytes = usize::from(u16_at(packet, 2)?);
        let fragment = u16_at(packet, 6)? & 0x3fff;
        if first >> 4 != 4
            || ip_header_bytes < IP_HEADER_BYTES
            || fragment != 0
            || packet.get(9) != Some(&PROTOCOL_TCP)
        {
            return None;
        }
        let tcp = packet.get(ip_header_bytes..total_bytes)?;
        let tcp_header_bytes = usize::from(tcp.get(12)? >> 4) * 4;
        let data_bytes = tcp
            .len()
            .checked_sub(tcp_header_bytes.max(TCP_HEADER_BYTES))?;
        let flags = tcp[13] & (FIN | SYN | RST | ACK);
        Some(Self {
            from: SocketAddrV4::new(Ipv4Addr::from(u32_at(packet, 12)?), u16_at(tcp, 0)?),
            to: SocketAddrV4::new(Ipv4Addr::from(u32_at(packet, 16)?), u16_at(tcp, 2)?),
            sequence: u32_at(tcp, 4)?,
            acknowledgement: if flags & ACK == 0 { 0 } else { u32_at(tcp, 8)? },
            flags,
            data_bytes: u32::try_from(data_bytes).ok()?,
        })
    }

    /// Whether it asks for a connection.
    #[must_use]
    pub fn is_syn(&self) -> bool {
        self.flags & (SYN | ACK | RST) == SYN
    }

    /// What a peer answers that accepts every connection, ignores all data, and closes when the other side closes.
    #[must_use]
    pub fn answer(&self) -> Option<Self> {
        let taken =
            self.data_bytes + u32::from(self.flags & SYN != 0) + u32::from(self.flags & FIN != 0);
        // An acknowledgement of an acknowledgement would go on for ever.
        if self.flags & RST != 0 || taken == 0 {
            return None;
        }
        let (sequence, flags) = if self.is_syn() {
            (FIRST_SEQUENCE, SYN | ACK)
        } else {
            (self.acknowledgement, ACK | (self.flags & FIN))
        };
        Some(Self {
            from: self.to,
            to: self.from,
            sequence,
            acknowledgement: self.sequence.wrapping_add(taken),
            flags,
            data_bytes: 0,
        })
    }

    /// The IP packet of a segment, without data, with both checksums.
    #[must_use]
    pub fn to_packet(&self) -> Vec<u8> {
        let options: &[u8] = if self.flags & SYN == 0 {
            &[]
        } else {
            &MAXIMUM_SEGMENT_SIZE
        };
        // 24 and 44 at most: neither is cut.
        #[expect(clippy::cast_possible_truncation)]
        let (tcp_bytes, total_bytes) = (
            (TCP_HEADER_BYTES + options.len()) as u8,
            (IP_HEADER_BYTES + TCP_HEADER_BYTES + options.len()) as u8,
        );

        let mut packet = vec![
            0x45,
            0,
            0,
            total_bytes,
            0,
            0,
            0x40,
            0,
            64,
            PROTOCOL_TCP,
            0,
            0,
        ];
        packet.extend(self.from.ip().octets());
        packet.extend(self.to.ip().octets());
        let header_checksum = checksum(&[&packet]);
        packet[10..12].copy_from_slice(&header_checksum.to_be_bytes());

        packet.extend(self.from.port().to_be_bytes());
        packet.extend(self.to.port().to_be_bytes());
        packet.extend(self.sequence.to_be_bytes());
        packet.extend(self.acknowledgement.to_be_bytes());
        packet.extend([tcp_bytes << 2, self.flags]);
        packet.extend(u16::MAX.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend(options);
        let (ip, tcp) = packet.split_at_mut(IP_HEADER_BYTES);
        let tcp_checksum = checksum(&[&ip[12..20], &[0, PROTOCOL_TCP, 0, tcp_bytes], tcp]);
        tcp[16..18].copy_from_slice(&tcp_checksum.to_be_bytes());
        packet
    }
}

/// The Internet checksum (RFC 1071) of these parts one after the other; each but the last is even in length.
#[must_use]
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u32 = parts
        .iter()
        .flat_map(|part| part.chunks(2))
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits above")]
    let folded = sum as u16;
    !folded
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> SocketAddrV4 {
        "10.99.0.1:40000".parse().unwrap()
    }

    fn peer() -> SocketAddrV4 {
        "10.99.0.2:80".parse().unwrap()
    }

    fn segment(flags: u8, data_bytes: u32) -> Segment {
        Segment {
            from: client(),
            to: peer(),
            sequence: u32::MAX,
            acknowledgement: if flags & ACK == 0 { 0 } else { 77 },
            flags,
            data_bytes,
        }
    }

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        // The example of section 3: the sum is ddf2.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&[&bytes]), !0xddf2);
        assert_eq!(checksum(&[&bytes[..4], &bytes[4..]]), !0xddf2);
        assert_eq!(checksum(&[&[0x12]]), !0x1200);
        assert_eq!(checksum(&[&[0xff; 6]]), 0);
    }

    #[test]
    fn a_syn_ack_is_the_right_bytes() {
        let syn_ack = Segment {
            from: peer(),
            to: client(),
            sequence: 1,
            acknowledgement: 2,
            flags: SYN | ACK,
            data_bytes: 0,
        };
        let packet = syn_ack.to_packet();
        #[rustfmt::skip]
        let expected = [
            0x45, 0, 0, 44, 0, 0, 0x40, 0, 64, 6, 0x26, 0x04, 10, 99, 0, 2, 10, 99, 0, 1,
            0, 80, 0x9c, 0x40, 0, 0, 0, 1, 0, 0, 0, 2, 0x60, 0x12, 0xff, 0xff, 0xe6, 0xba, 0, 0, 2, 4, 5, 0xb4,
        ];
        assert_eq!(packet, expected);
    }

    #[test]
    fn what_is_built_is_read_back_with_checksums_that_add_up() {
        for flags in [SYN | ACK, ACK, FIN | ACK] {
            let packet = segment(flags, 0).to_packet();
            assert_eq!(Segment::parse(&packet), Some(segment(flags, 0)));
            assert_eq!(checksum(&[&packet[..20]]), 0);
            let tcp_bytes = u8::try_from(packet.len() - 20).unwrap();
            assert_eq!(
                checksum(&[&packet[12..20], &[0, 6, 0, tcp_bytes], &packet[20..]]),
                0
            );
        }
    }

    #[test]
    fn a_syn_is_answered_by_a_syn_ack() {
        let answer = segment(SYN, 0).answer().unwrap();
        let expected = Segment {
            from: peer(),
            to: client(),
            sequence: FIRST_SEQUENCE,
            acknowledgement: 0,
            flags: SYN | ACK,
            data_bytes: 0,
        };
        assert_eq!(answer, expected);
        assert!(segment(SYN, 0).is_syn());
        assert!(!expected.is_syn());
    }

    #[test]
    fn a_fin_is_answered_by_a_fin_and_data_by_an_ack() {
        let fin = segment(FIN | ACK, 3).answer().unwrap();
        assert_eq!(
            (fin.flags, fin.sequence, fin.acknowledgement),
            (FIN | ACK, 77, 3)
        );
        let data = segment(ACK, 10).answer().unwrap();
        assert_eq!(
            (data.flags, data.sequence, data.acknowledgement),
            (ACK, 77, 9)
        );
    }

    #[test]
    fn a_bare_ack_and_a_reset_are_not_answered() {
        assert_eq!(segment(ACK, 0).answer(), None);
        assert_eq!(segment(RST, 0).answer(), None);
        assert_eq!(segment(RST | ACK | SYN, 0).answer(), None);
    }

    #[test]
    fn what_is_no_tcp_over_ipv4_is_not_read() {
        let whole = segment(SYN, 0).to_packet();
        for length in 0..whole.len() {
            assert_eq!(Segment::parse(&whole[..length]), None, "{length} bytes");
        }
        let mut ipv6 = whole.clone();
        ipv6[0] = 0x65;
        let mut udp = whole.clone();
        udp[9] = 17;
        let mut fragment = whole.clone();
        fragment[6] = 0x20;
        let mut short_header = whole.clone();
        short_header[0] = 0x44;
        for packet in [ipv6, udp, fragment, short_header] {
            assert_eq!(Segment::parse(&packet), None);
        }
    }
}
