//! Connections that close: how long they lived, what they carried, and who had them.

use super::{TCP, Trace, seen, with};
use crate::host::{hooks, turn};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Bytes that go to the server and back.
const REQUEST: usize = 100_000;
const ANSWER: usize = 3_000;

const CONNECTIONS: usize = 50;

/// How long each of them is kept open at least.
const LIFE: Duration = Duration::from_millis(20);

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let thread = thread::Builder::new().name(name.to_owned());
    thread.spawn(body).unwrap()
}

/// Answers so many connections, one after the other, and closes each when the client has.
fn server(listener: TcpListener) -> JoinHandle<()> {
    spawn("server", move || {
        for _ in 0..CONNECTIONS {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; REQUEST];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(&[0; ANSWER]).unwrap();
            assert_eq!(stream.read(&mut request).unwrap(), 0);
        }
    })
}

fn client(port: u16) -> JoinHandle<()> {
    spawn("client", move || {
        for _ in 0..CONNECTIONS {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(&vec![0; REQUEST]).unwrap();
            stream.read_exact(&mut [0; ANSWER]).unwrap();
            thread::sleep(LIFE);
        }
    })
}

/// The connections that close while two threads talk; none where the kernel left out runs of the programs.
fn talk(hook: &str, filter: &str) -> Option<Vec<Value>> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let args = format!("tcp --closed --format json --port {port} {filter}");
    let trace = Trace::by(hook, &args);
    let threads = [server(listener), client(port)];
    for thread in threads {
        thread.join().unwrap();
    }
    // A connect that fails is no connection.
    TcpStream::connect(("127.0.0.1", port)).unwrap_err();
    trace.objects()
}

#[test]
fn closed_connections_have_their_bytes_time_and_process() {
    turn!("closed_connections_have_their_bytes_time_and_process");
    for hook in hooks("tcp", &TCP) {
        let objects = seen(|| talk(&hook, ""));
        for (role, received, sent) in [("client", ANSWER, REQUEST), ("server", REQUEST, ANSWER)] {
            let ends = with(&objects, "role", role);
            assert_eq!(ends.len(), CONNECTIONS, "{hook} {role}");
            for end in ends {
                assert_eq!(end["received_bytes"], received, "{hook} {end}");
                assert_eq!(end["sent_bytes"], sent, "{hook} {end}");
                assert_eq!(end["retransmits"], 0, "{hook} {end}");
                assert_eq!(end["outcome"], "ok", "{hook} {end}");
                assert_eq!(end["pid"], process::id(), "{hook} {end}");
                assert_eq!(end["comm"], role, "{hook} {end}");
                let seconds = end["duration_seconds"].as_f64().unwrap();
                assert!((LIFE.as_secs_f64()..20.0).contains(&seconds), "{end}");
            }
        }
        assert_eq!(objects.len(), 2 * CONNECTIONS);
    }
}

#[test]
fn closed_connections_are_filtered() {
    turn!("closed_connections_are_filtered");
    let hooks = hooks("tcp", &TCP);
    let count = |filter: &str| seen(|| talk(&hooks[0], filter)).len();
    let own = process::id();
    assert_eq!(count(&format!("--pid {own}")), 2 * CONNECTIONS);
    assert_eq!(count("--pid 1"), 0);
    assert_eq!(count("--min-duration 20ms"), 2 * CONNECTIONS);
    assert_eq!(count("--min-duration 1h"), 0);
}

/// A server that closes with something unread resets the connection.
#[test]
fn connections_that_are_reset_say_so() {
    turn!("connections_that_are_reset_say_so");
    for hook in hooks("tcp", &TCP) {
        let objects = seen(|| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let trace = Trace::by(&hook, &format!("tcp --closed --format json --port {port}"));
            for _ in 0..5 {
                let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
                client.write_all(b"unread").unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                let (server, _) = listener.accept().unwrap();
                while server.peek(&mut [0; 6]).unwrap() < 6 {}
                drop(server);
                assert!(client.read(&mut [0]).is_err());
            }
            trace.objects()
        });
        for (role, outcome, received, sent) in [("client", "reset", 0, 6), ("server", "ok", 6, 0)] {
            let ends = with(&objects, "role", role);
            assert_eq!(ends.len(), 5, "{hook} {role}");
            for end in ends {
                assert_eq!(end["outcome"], outcome, "{hook} {end}");
                assert_eq!(end["received_bytes"], received, "{hook} {end}");
                assert_eq!(end["sent_bytes"], sent, "{hook} {end}");
                assert_eq!(end["pid"], process::id(), "{hook} {end}");
            }
        }
    }
}
