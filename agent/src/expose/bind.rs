//! Taking the listening address, and saying who has it where it is taken.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use tokio::net::{TcpListener, TcpSocket};

/// What a client that doesn't read can pin in the kernel, per connection; the kernel doubles it for its own needs.
const SEND_BUFFER_BYTES: u32 = 256 * 1024;

const BACKLOG: u32 = 128;

/// Why an address can't be listened on, in one line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    /// Another socket listens there.
    #[error("{address} is already in use by {holder}")]
    InUse {
        /// The address that was asked for.
        address: SocketAddr,
        /// Who listens.
        holder: Holder,
    },
    /// The host has no such address.
    #[error(
        "cannot listen on {0}: this host has no such address; allowed are 127.0.0.1, 0.0.0.0, [::1], [::] and the addresses of its interfaces"
    )]
    NoSuchAddress(SocketAddr),
    /// The port is reserved for processes with more privileges.
    #[error(
        "cannot listen on {0}: ports below 1024 need CAP_NET_BIND_SERVICE; allowed without it are 1024 to 65535"
    )]
    Privileged(SocketAddr),
    /// Anything else the kernel says.
    #[error("cannot listen on {address}: {error}")]
    Other {
        /// The address that was asked for.
        address: SocketAddr,
        /// The kernel's answer.
        error: io::Error,
    },
}

impl BindError {
    fn new(address: SocketAddr, error: io::Error, procfs: &Path) -> Self {
        match error.kind() {
            io::ErrorKind::AddrInUse => Self::InUse {
                address,
                holder: Holder::find(procfs, address),
            },
            io::ErrorKind::AddrNotAvailable => Self::NoSuchAddress(address),
            io::ErrorKind::PermissionDenied if address.port() < 1024 => Self::Privileged(address),
            _ => Self::Other { address, error },
        }
    }
}

/// The process that listens on an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A process that could be found.
    Process {
        /// Its command name.
        name: String,
        /// Its process id.
        pid: u32,
    },
    /// One in another namespace, or one whose files may not be seen.
    Unknown,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { name, pid } => write!(f, "{name} (pid {pid})"),
            Self::Unknown => f.write_str("another process"),
        }
    }
}

impl Holder {
    /// Looks for the process with a listening socket that keeps `address` from being bound.
    fn find(procfs: &Path, address: SocketAddr) -> Self {
        let links: Vec<String> = ["net/tcp", "net/tcp6"]
            .iter()
            .filter_map(|table| fs::read_to_string(procfs.join(table)).ok())
            .flat_map(|text| listening(&text))
            .filter(|socket| conflict(socket.address, address))
            .map(|socket| format!("socket:[{}]", socket.inode))
            .collect();
        let Ok(entries) = fs::read_dir(procfs) else {
            return Self::Unknown;
        };
        let mut pids: Vec<u32> = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        // Workers of one server share the socket; the lowest id is most likely the one that opened it.
        pids.sort_unstable();
        pids.into_iter()
            .find(|pid| has_open(&procfs.join(pid.to_string()), &links))
            .map_or(Self::Unknown, |pid| Self::Process {
                name: command_name(&procfs.join(pid.to_string())),
                pid,
            })
    }
}

fn has_open(process: &Path, links: &[String]) -> bool {
    let Ok(files) = fs::read_dir(process.join("fd")) else {
        return false;
    };
    files
        .filter_map(|file| fs::read_link(file.ok()?.path()).ok())
        .any(|target| links.iter().any(|link| target.as_os_str() == link.as_str()))
}

/// A process may call itself anything, and the message is one line.
fn command_name(process: &Path) -> String {
    let name = fs::read(process.join("comm")).unwrap_or_default();
    let name = String::from_utf8_lossy(name.strip_suffix(b"\n").unwrap_or(&name));
    if name.is_empty() {
        return "a process".to_owned();
    }
    name.replace(|c: char| c.is_control(), "?")
}

/// Starts listening on `address`. `procfs` is where the kernel's process files are mounted, usually `/proc`; they
/// tell who has the address if it is taken.
///
/// # Errors
/// When the address is taken, isn't this host's, or needs more privileges.
#[allow(
    clippy::unused_async,
    reason = "registers with the reactor, which exists only inside a runtime"
)]
pub(crate) async fn bind(address: SocketAddr, procfs: &Path) -> Result<TcpListener, BindError> {
    listen(address).map_err(|error| BindError::new(address, error, procfs))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Without it a restart fails for a minute after connections were closed from this side.
    socket.set_reuseaddr(true)?;
    // Accepted sockets inherit it.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A listening socket in `/proc/net/tcp` or `/proc/net/tcp6`.
#[derive(Debug, PartialEq, Eq)]
struct ListeningSocket {
    address: SocketAddr,
    inode: u64,
}

/// The listening sockets in the text of `/proc/net/tcp` or `/proc/net/tcp6`. Lines of another shape are skipped.
fn listening(table: &str) -> Vec<ListeningSocket> {
    const STATE_LISTEN: &str = "0A";
    table
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let local = fields.nth(1)?;
            let state = fields.nth(1)?;
            let inode = fields.nth(5)?.parse().ok()?;
            let address = parse_address(local)?;
            (state == STATE_LISTEN).then_some(ListeningSocket { address, inode })
        })
        .collect()
}

/// An address such as `0100007F:2643`: groups of eight digits, each a word as it lies in memory, then the port.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    if address.len() % 8 != 0 {
        return None;
    }
    let mut bytes = Vec::with_capacity(16);
    for start in (0..address.len()).step_by(8) {
        let word = u32::from_str_radix(address.get(start..start + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = if let Ok(v4) = <[u8; 4]>::try_from(bytes.as_slice()) {
        IpAddr::V4(Ipv4Addr::from(v4))
    } else {
        let v6 = <[u8; 16]>::try_from(bytes.as_slice()).ok()?;
        IpAddr::V6(Ipv6Addr::from(v6))
    };
    Some(SocketAddr::new(ip, port))
}

/// Whether two addresses can't both be listened on: the same port, and the same host or any host on either side.
fn conflict(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    // An IPv6 wildcard takes IPv4 as well, unless its socket says otherwise, which the tables don't show.
    let covers = |wildcard: IpAddr, ip: IpAddr| {
        wildcard.is_unspecified() && (wildcard.is_ipv6() || ip.is_ipv4())
    };
    one.port() == other.port() && (a == b || covers(a, b) || covers(b, a))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expose::server::runtime;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2623 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 5678 1 0000000000000000 100 0 0 10 0
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 615 1 0000000016346543 100 0 0 10 0
   2: 0100007F:2623 0100007F:D431 01 00000000:00000000 02:000A7214 00000000     0        0 9012 2 0000000000000000 20 4 30 10 -1
   3: broken
";
    const TCP6: &str = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 77 1 0000000000000000 100 0 0 10 0
   1: B80D0120000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 78 1 0000000000000000 100 0 0 10 0
";

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn reads_listening_sockets() {
        let found = |text| -> Vec<(String, u64)> {
            let sockets = listening(text);
            sockets
                .iter()
                .map(|socket| (socket.address.to_string(), socket.inode))
                .collect()
        };
        assert_eq!(
            found(TCP),
            [
                ("127.0.0.1:9763".to_owned(), 5678),
                ("0.0.0.0:22".to_owned(), 615)
            ]
        );
        assert_eq!(
            found(TCP6),
            [
                ("[::]:8080".to_owned(), 77),
                ("[2001:db8::1]:80".to_owned(), 78)
            ]
        );
    }

    #[test]
    fn knows_which_addresses_conflict() {
        for (one, other, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "0.0.0.0:80", true),
            ("[::]:80", "127.0.0.1:80", true),
            ("[::]:80", "[::1]:80", true),
            ("0.0.0.0:80", "[::]:80", true),
            ("0.0.0.0:80", "[::1]:80", false),
            ("[::1]:80", "127.0.0.1:80", false),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80", true),
        ] {
            assert_eq!(
                conflict(address(one), address(other)),
                expected,
                "{one} {other}"
            );
        }
    }

    struct Procfs(PathBuf);

    impl Procfs {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("sentry-{name}-{}", std::process::id()));
            fs::create_dir_all(root.join("net")).unwrap();
            fs::write(root.join("net/tcp"), TCP).unwrap();
            fs::write(root.join("net/tcp6"), TCP6).unwrap();
            Self(root)
        }

        fn process(&self, pid: u32, comm: &str, links: &[&str]) {
            let fd = self.0.join(pid.to_string()).join("fd");
            fs::create_dir_all(&fd).unwrap();
            fs::write(fd.with_file_name("comm"), comm).unwrap();
            for (number, link) in links.iter().enumerate() {
                symlink(link, fd.join(number.to_string())).unwrap();
            }
        }
    }

    impl Drop for Procfs {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn in_use(procfs: &Path, wanted: &str) -> String {
        let error = io::Error::from(io::ErrorKind::AddrInUse);
        BindError::new(address(wanted), error, procfs).to_string()
    }

    #[test]
    fn names_the_holder() {
        let procfs = Procfs::new("holder");
        procfs.process(12, "init\n", &["/dev/null", "socket:[615]"]);
        procfs.process(1234, "sentry\n", &["/dev/null", "socket:[5678]"]);
        procfs.process(300, "od\nd\u{1b}\n", &["socket:[77]"]);
        procfs.process(4, "client\n", &["socket:[9012]"]);
        for (wanted, expected) in [
            (
                "127.0.0.1:9763",
                "127.0.0.1:9763 is already in use by sentry (pid 1234)",
            ),
            (
                "0.0.0.0:9763",
                "0.0.0.0:9763 is already in use by sentry (pid 1234)",
            ),
            (
                "127.0.0.1:22",
                "127.0.0.1:22 is already in use by init (pid 12)",
            ),
            (
                "127.0.0.1:8080",
                "127.0.0.1:8080 is already in use by od?d? (pid 300)",
            ),
            (
                "127.0.0.2:9763",
                "127.0.0.2:9763 is already in use by another process",
            ),
            (
                "[2001:db8::1]:80",
                "[2001:db8::1]:80 is already in use by another process",
            ),
        ] {
            assert_eq!(in_use(&procfs.0, wanted), expected);
        }
        assert_eq!(
            in_use(Path::new("/nonexistent"), "127.0.0.1:22"),
            "127.0.0.1:22 is already in use by another process"
        );
    }

    #[test]
    fn a_taken_port_names_this_process() {
        let runtime = runtime().unwrap();
        let name = fs::read_to_string("/proc/self/comm").unwrap();
        for (first, second) in [
            ("127.0.0.1:0", "127.0.0.1"),
            ("0.0.0.0:0", "127.0.0.1"),
            ("127.0.0.1:0", "0.0.0.0"),
            ("[::]:0", "127.0.0.1"),
        ] {
            if first.starts_with('[') && std::net::TcpListener::bind(first).is_err() {
                eprintln!("skipped: this kernel has no IPv6");
                continue;
            }
            runtime.block_on(async {
                let held = bind(address(first), Path::new("/proc")).await.unwrap();
                let port = held.local_addr().unwrap().port();
                let wanted = address(&format!("{second}:{port}"));
                let error = bind(wanted, Path::new("/proc")).await.unwrap_err();
                assert_eq!(
                    error.to_string(),
                    format!(
                        "{wanted} is already in use by {} (pid {})",
                        name.trim_end(),
                        std::process::id()
                    )
                );
            });
        }
    }

    #[test]
    fn other_failures_are_one_clear_line() {
        let runtime = runtime().unwrap();
        let error = runtime
            .block_on(bind(address("192.0.2.1:9763"), Path::new("/proc")))
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot listen on 192.0.2.1:9763: this host has no such address; allowed are 127.0.0.1, 0.0.0.0, [::1], [::] and the addresses of its interfaces"
        );
        for (number, wanted, expected) in [
            (
                13,
                "127.0.0.1:80",
                "cannot listen on 127.0.0.1:80: ports below 1024 need CAP_NET_BIND_SERVICE; allowed without it are 1024 to 65535",
            ),
            (
                13,
                "127.0.0.1:8080",
                "cannot listen on 127.0.0.1:8080: Permission denied (os error 13)",
            ),
            (
                97,
                "[::1]:8080",
                "cannot listen on [::1]:8080: Address family not supported by protocol (os error 97)",
            ),
        ] {
            let error = io::Error::from_raw_os_error(number);
            let message = BindError::new(address(wanted), error, Path::new("/proc")).to_string();
            assert_eq!(message, expected);
        }
    }
}
