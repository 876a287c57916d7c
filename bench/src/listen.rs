//! A listener that counts what it accepts.

use crate::connect::raise_file_limit;
use crate::lifeline::{self, Wake};
use crate::{Error, Result, print};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, accept_with, bind, getsockname, listen, socket_with,
    sockopt,
};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Asks for the longest queue that `net.core.somaxconn` allows: a full one drops SYNs.
const BACKLOG: i32 = i32::MAX;

/// The last connects' packets may still be under way when the end is announced.
const QUIET: Duration = Duration::from_millis(50);

/// A TCP listener that never blocks in accept.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Listens on an address; `::` takes IPv4 clients too.
    ///
    /// # Errors
    /// When the address is not this machine's or the port is taken.
    pub fn bind(address: SocketAddr) -> Result<Self> {
        Self::try_bind(address).map_err(Error::io(format!("listen on {address}")))
    }

    fn try_bind(address: SocketAddr) -> rustix::io::Result<Self> {
        let family = if address.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(family, SocketType::STREAM, flags, None)?;
        if address.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, false)?;
        }
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &address)?;
        listen(&socket, BACKLOG)?;
        Ok(Self(socket))
    }

    /// Where it listens, with the port that the kernel chose if it was asked for port 0.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn address(&self) -> Result<SocketAddr> {
        getsockname(&self.0)
            .and_then(SocketAddr::try_from)
            .map_err(Error::io("read the listener's address"))
    }

    /// Takes what has been accepted, if anything.
    ///
    /// # Errors
    /// When accept fails otherwise than for want of a connection.
    pub fn accept(&self) -> Result<Option<OwnedFd>> {
        match accept_with(&self.0, SocketFlags::CLOEXEC) {
            Ok(connection) => Ok(Some(connection)),
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(Error::io("accept")(errno)),
        }
    }

    /// Waits for a connection; true when there is one.
    pub(crate) fn wait(&self, timeout: Duration) -> Result<bool> {
        lifeline::readable_within(self.0.as_fd(), timeout)
    }
}

/// Where to listen.
#[derive(Debug, Clone, clap::Args)]
pub struct ListenArgs {
    /// Port; 0 lets the kernel choose
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    /// Address; :: takes IPv6 and IPv4 clients
    #[arg(long, default_value = "127.0.0.1")]
    pub addr: IpAddr,
    /// Keep every connection open until the end
    #[arg(long)]
    pub hold: bool,
    /// Cgroup to join first; may be repeated, once for each hierarchy
    #[arg(long = "cgroup", value_name = "DIR")]
    pub cgroups: Vec<PathBuf>,
}

/// The first line: the listener is ready.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenReady {
    /// The port it listens on.
    pub port: u16,
}

/// What was done.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenReport {
    /// Connections accepted.
    pub accepted: u64,
}

/// Prints [`ListenReady`], then accepts until standard input closes.
///
/// # Errors
/// When the address cannot be listened on, or accept fails.
pub fn run(args: &ListenArgs) -> Result<ListenReport> {
    raise_file_limit()?;
    let listener = Listener::bind(SocketAddr::new(args.addr, args.port))?;
    let port = listener.address()?.port();
    print(&ListenReady { port })?;
    let mut accepted = 0;
    let mut held = Vec::new();
    let mut accept_all = || -> Result<()> {
        while let Some(connection) = listener.accept()? {
            accepted += 1;
            if args.hold {
                held.push(connection);
            }
        }
        Ok(())
    };
    while lifeline::wait(listener.0.as_fd(), None)? == Wake::Readable {
        accept_all()?;
    }
    while listener.wait(QUIET)? {
        accept_all()?;
    }
    Ok(ListenReport { accepted })
}
