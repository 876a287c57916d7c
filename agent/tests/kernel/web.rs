//! `--web.config.file`: who is let in and who is not, by real clients, also while others attack.

use crate::agent::{Agent, get, sentry, without_settings};
use crate::exposition::{Exposition, Format};
use crate::host::{Folder, output, turn, wait_for};
use crate::lifecycle::as_nobody;
use crate::privileges::{DAC_READ_SEARCH, assert_left, mask, said_to_be_kept};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

/// Signs certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// Writes `NAME.crt` and `NAME.key` with this alternative name, valid until this year.
    fn write(&self, folder: &Path, name: &str, subject: &str, until: i32) {
        let mut params = CertificateParams::new(vec![subject.to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        // With that of the authority, OpenSSL would take it for its own issuer.
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        fs::write(folder.join(format!("{name}.crt")), certificate).unwrap();
        fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

/// A folder with an authority, a certificate for loopback, and a file that takes them.
struct Site {
    folder: Folder,
    authority: Authority,
}

impl Site {
    /// `more` belongs to `tls_server_config`.
    fn new(more: &str) -> Self {
        let (folder, authority) = (Folder::new(), Authority::new());
        fs::write(folder.path().join("ca.crt"), &authority.pem).unwrap();
        authority.write(folder.path(), "server", "127.0.0.1", 4000);
        let site = Self { folder, authority };
        site.write(more, "right");
        site
    }

    fn write(&self, more: &str, password: &str) {
        let hash = bcrypt::hash(password, 5).unwrap();
        let text = format!(
            "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n{more}basic_auth_users:\n  prometheus: {hash}\n"
        );
        self.replace("web.yml", &text);
    }

    /// Writes a file that takes the place of another at once.
    fn replace(&self, name: &str, text: &str) {
        let new = self.folder.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, self.folder.path().join(name)).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn flags(&self) -> String {
        format!("--web.config.file {}", self.path("web.yml"))
    }

    /// A real curl: status and body, or its exit code.
    fn curl(&self, agent: &Agent, password: &str, args: &[&str]) -> Result<(u16, String), i32> {
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--max-time",
            "20",
            "--write-out",
            "\n%{http_code}",
        ])
        .args(["--cacert", &self.path("ca.crt")])
        .args(["--user", &format!("prometheus:{password}")])
        .args(args)
        .arg(format!("https://{}/metrics", agent.address()));
        let output = output(curl);
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        match output.status.code() {
            Some(0) => Ok((status.parse().unwrap(), body.to_owned())),
            code => Err(code.unwrap()),
        }
    }

    /// What it says of itself to the rightful.
    fn scrape(&self, agent: &Agent, password: &str, args: &[&str]) -> Exposition {
        let (status, body) = self.curl(agent, password, args).unwrap();
        assert_eq!(status, 200, "{body}");
        Exposition::parse(&body, Format::Text)
    }
}

#[test]
fn curl_is_let_in_with_all_that_is_asked_for() {
    turn!("curl_is_let_in_with_all_that_is_asked_for");
    let site = Site::new(
        "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n  client_allowed_sans: [prometheus.example]\n",
    );
    let folder = site.folder.path();
    site.authority
        .write(folder, "good", "prometheus.example", 4000);
    site.authority
        .write(folder, "expired", "prometheus.example", 2020);
    site.authority.write(folder, "other", "other.example", 4000);
    Authority::new().write(folder, "stranger", "prometheus.example", 4000);
    let agent = Agent::start(&format!("--probes tcp {}", site.flags()));
    assert!(
        agent.log().contains("serving https://127.0.0.1:"),
        "{}",
        agent.log()
    );
    let with = |name: &str| {
        let files = [
            site.path(&format!("{name}.crt")),
            site.path(&format!("{name}.key")),
        ];
        let [certificate, key] = files;
        ["--cert".to_owned(), certificate, "--key".to_owned(), key]
    };
    let curl = |name: &str, password: &str, more: &[&str]| {
        let files = with(name);
        let args: Vec<&str> = files
            .iter()
            .map(String::as_str)
            .chain(more.iter().copied())
            .collect();
        site.curl(&agent, password, &args).map(|(status, _)| status)
    };
    assert_eq!(curl("good", "right", &[]), Ok(200));
    assert_eq!(curl("good", "right", &["--tls-max", "1.2"]), Ok(200));
    assert_eq!(curl("good", "right", &["--http2"]), Ok(200));
    assert_eq!(curl("good", "wrong", &[]), Ok(401));
    for name in ["expired", "other", "stranger"] {
        assert!(curl(name, "right", &[]).is_err(), "{name}");
    }
    assert!(site.curl(&agent, "right", &[]).is_err());
    let old = ["--tls-max", "1.1", "--ciphers", "DEFAULT@SECLEVEL=0"];
    assert!(curl("good", "right", &old).is_err());
    assert_eq!(agent.get("/metrics", &[]).status, 400);

    let files = with("good");
    let args: Vec<&str> = files.iter().map(String::as_str).collect();
    let scrape = site.scrape(&agent, "right", &args);
    let failed = |reason: &str| {
        scrape.count(
            "sentry_http_tls_handshake_errors_total",
            &[("reason", reason)],
        )
    };
    for (reason, expected) in [
        ("no_certificate", 1),
        ("certificate_expired", 1),
        ("certificate_untrusted", 1),
        ("certificate_not_allowed", 1),
        ("incompatible", 1),
        ("not_tls", 1),
    ] {
        assert_eq!(failed(reason), expected, "{reason}");
    }
    let wrong = [("reason", "wrong_password")];
    assert_eq!(
        scrape.count("sentry_http_authentication_failures_total", &wrong),
        1
    );
    assert_eq!(
        scrape.value("sentry_web_config_last_reload_successful", &[]),
        1.0
    );
    agent.stop();
}

#[test]
fn changes_are_taken_in_and_mistakes_are_not() {
    turn!("changes_are_taken_in_and_mistakes_are_not");
    let site = Site::new("");
    // Another user's: what root may not read once it has given up its capabilities.
    let key = site.folder.path().join("server.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    chown(&key, Some(12345), Some(12345)).unwrap();
    let agent = Agent::start(&format!("--probes tcp {}", site.flags()));
    let kept = said_to_be_kept(&agent);
    assert_eq!(mask(&kept) & DAC_READ_SEARCH, DAC_READ_SEARCH, "{kept}");
    assert!(
        kept.contains("files of --config.file and --web.config.file are read anew"),
        "{kept}"
    );
    assert_eq!(site.curl(&agent, "right", &[]).unwrap().0, 200);
    assert_left(&agent, mask(&kept), mask(&kept));

    // A new certificate, from a new authority, and a new password.
    let next = Authority::new();
    next.write(site.folder.path(), "next", "127.0.0.1", 4000);
    let next_key = site.folder.path().join("next.key");
    fs::set_permissions(&next_key, fs::Permissions::from_mode(0o600)).unwrap();
    chown(&next_key, Some(12345), Some(12345)).unwrap();
    for kind in ["key", "crt"] {
        let of = |name: &str| site.folder.path().join(format!("{name}.{kind}"));
        fs::rename(of("next"), of("server")).unwrap();
    }
    site.write("", "new");
    // Which curl cannot verify yet.
    wait_for("the new certificate", PATIENCE, || {
        site.curl(&agent, "right", &[]).is_err().then_some(())
    });
    site.replace("ca.crt", &next.pem);
    assert_eq!(site.curl(&agent, "right", &[]).unwrap().0, 401);
    let reloads = |what: &str| {
        let scrape = site.scrape(&agent, "new", &[]);
        scrape.value(&format!("sentry_web_config_{what}"), &[])
    };
    assert_eq!(reloads("last_reload_successful"), 1.0);

    // Wrong: one line, however many connections come, and all goes on.
    site.replace("web.yml", "tls_server_config: {cert_fil: server.crt}");
    wait_for("the refusal", PATIENCE, || {
        (reloads("last_reload_successful") == 0.0).then_some(())
    });
    let failed = reloads("reload_failures_total");
    thread::sleep(Duration::from_millis(1100));
    assert_eq!(reloads("reload_failures_total"), failed);
    let line = format!(
        "web config file {}:1: tls_server_config.cert_fil: unknown key; did you mean cert_file?; what was in force before stays so",
        site.path("web.yml")
    );
    assert_eq!(agent.log().matches(&line).count(), 1, "{}", agent.log());
    site.write("", "newest");
    // A connection that was let in by what was in force before is closed when the change is seen between its handshake
    // and its request.
    wait_for("the newest password", PATIENCE, || {
        let answer = site.curl(&agent, "newest", &[]);
        answer.is_ok_and(|(status, _)| status == 200).then_some(())
    });
    agent.stop();
}

#[test]
fn a_wrong_file_ends_the_start_and_the_check() {
    turn!("a_wrong_file_ends_the_start_and_the_check");
    let site = Site::new("  min_version: TLS14\n");
    let expected = format!(
        "sentry: web config file {}:4: tls_server_config.min_version: invalid value 'TLS14'; allowed: TLS10, TLS11, TLS12, TLS13\n",
        site.path("web.yml")
    );
    for command in ["", "check"] {
        let refused = output(sentry(&format!("{command} {}", site.flags())));
        assert_eq!(String::from_utf8(refused.stderr).unwrap(), expected);
        assert_eq!(refused.status.code(), Some(2));
    }
    site.write("  min_version: TLS11\n", "right");
    let checked = output(sentry(&format!("check --format json {}", site.flags())));
    let report: Value = serde_json::from_slice(&checked.stdout).unwrap();
    let (value, meaning) = crate::privileges::fact(&report, "web config");
    assert_eq!(value, "TLS, 1 user");
    assert!(
        meaning
            .unwrap()
            .ends_with("TLS11 is taken for TLS12, the oldest there is")
    );

    // Nobody may not read root's key, and says so.
    let key = site.folder.path().join("server.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(site.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let flags = site.flags();
    let args: Vec<&str> = flags.split(' ').collect();
    let refused = output(as_nobody(&Folder::new(), &["bpf", "perfmon"], &args));
    assert_eq!(
        String::from_utf8(refused.stderr).unwrap(),
        format!(
            "sentry: web config file {}:3: tls_server_config.key_file: {}: cannot be read: Permission denied (os error 13)\n",
            site.path("web.yml"),
            key.display()
        )
    );
    assert_eq!(refused.status.code(), Some(2));
}

/// A real Prometheus that asks each second, by TLS and with a password. Killed on drop.
struct Prometheus {
    process: Child,
    address: SocketAddr,
}

impl Prometheus {
    fn start(site: &Site, target: SocketAddr) -> Self {
        // A port that was free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .unwrap();
        fs::write(site.folder.path().join("password"), "right").unwrap();
        let text = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: sentry\n  scheme: https\n  tls_config: {{ca_file: ca.crt, cert_file: client.crt, key_file: client.key}}\n  basic_auth: {{username: prometheus, password_file: password}}\n  static_configs: [{{targets: ['{target}']}}]\n"
        );
        fs::write(site.folder.path().join("prometheus.yml"), text).unwrap();
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", site.path("prometheus.yml")))
            .arg(format!("--storage.tsdb.path={}", site.path("data")))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = without_settings(&mut command)
            .spawn()
            .unwrap_or_else(|error| panic!("prometheus: {error}"));
        let prometheus = Self { process, address };
        wait_for("ready Prometheus", PATIENCE, || {
            TcpStream::connect(address).ok()?;
            (get(address, "/-/ready", &[]).status == 200).then_some(())
        });
        prometheus
    }

    /// The one value of a query, if it has one. What a URL takes otherwise is escaped already.
    fn value(&self, query: &str) -> Option<f64> {
        let answer = get(self.address, &format!("/api/v1/query?query={query}"), &[]);
        let answer: Value = serde_json::from_str(&answer.text()).unwrap();
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let value = &answer["data"]["result"].get(0)?["value"][1];
        Some(value.as_str().unwrap().parse().unwrap())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Connections that attack.
struct Attack {
    address: SocketAddr,
    config: Arc<ClientConfig>,
}

impl Attack {
    fn new(site: &Site, address: SocketAddr) -> Self {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_slice(site.authority.pem.as_bytes()).unwrap();
        roots.add(authority).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            address,
            config: Arc::new(config),
        }
    }

    fn socket(&self) -> TcpStream {
        let socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    fn session(&self) -> ClientConnection {
        let name = "127.0.0.1".try_into().unwrap();
        ClientConnection::new(Arc::clone(&self.config), name).unwrap()
    }

    fn encrypted(&self) -> StreamOwned<ClientConnection, TcpStream> {
        StreamOwned::new(self.session(), self.socket())
    }

    /// The first bytes of a handshake.
    fn hello(&self) -> Vec<u8> {
        let mut hello = Vec::new();
        self.session().write_tls(&mut hello).unwrap();
        hello
    }

    /// Wrong passwords, one after the other; how many were answered at all.
    fn log_in(&self, count: usize) -> usize {
        let mut answered = 0;
        for _ in 0..count {
            // Which a refusal ends.
            let mut stream = self.encrypted();
            // prometheus:wrong
            let request = b"GET /metrics HTTP/1.1\r\nHost: a\r\nAuthorization: Basic cHJvbWV0aGV1czp3cm9uZw==\r\n\r\n";
            let mut answer = Vec::new();
            if stream.write_all(request).is_err() {
                break;
            }
            // A head, and one line that ends it all.
            while answer.ends_with(b"\r\n") || !answer.ends_with(b"\n") {
                let mut part = [0; 1024];
                let Ok(read @ 1..) = stream.read(&mut part) else {
                    return answered;
                };
                answer.extend_from_slice(&part[..read]);
            }
            let status = &answer[9..12];
            assert!(
                [&b"401"[..], b"429", b"503"].contains(&status),
                "{answer:?}"
            );
            answered += 1;
        }
        answered
    }

    /// All kinds at `scale`, and `meanwhile` while more connections are held than there is room for; how many log-ins were
    /// tried, and how many connections were refused for certain.
    fn run(&self, scale: usize, meanwhile: impl FnOnce()) -> (usize, usize) {
        let start = Instant::now();
        let log_ins: usize = thread::scope(|scope| {
            let attackers: Vec<_> = (0..10)
                .map(|_| scope.spawn(|| self.log_in(scale / 100)))
                .collect();
            attackers
                .into_iter()
                .map(|attacker| attacker.join().unwrap())
                .sum()
        });
        eprintln!("{log_ins} log-ins in {:?}", start.elapsed());
        assert_eq!(log_ins, scale / 100 * 10);

        // One after the other: a tenth shakes hands, the others leave, or send half of what it takes.
        let start = Instant::now();
        let hello = self.hello();
        for number in 0..scale {
            if number % 10 == 0 {
                let mut stream = self.encrypted();
                let _ = stream.conn.complete_io(&mut stream.sock);
            } else {
                let mut socket = self.socket();
                let _ = socket.write_all(&hello[..number % hello.len()]);
            }
        }
        eprintln!("{scale} connections in {:?}", start.elapsed());

        // Slow within the handshake and after it, and left alone until they are cut off.
        let mut slow = Vec::new();
        let mut slow_within = Vec::new();
        for number in 0..40 {
            if number % 2 == 0 {
                let mut stream = self.encrypted();
                stream.write_all(b"GET /metrics HTTP/1.1\r\nHo").unwrap();
                slow.push(stream);
            } else {
                let mut socket = self.socket();
                socket.write_all(&hello[..50]).unwrap();
                slow_within.push(socket);
            }
        }
        let start = Instant::now();
        for socket in &mut slow_within {
            assert!(matches!(socket.read(&mut [0; 1]), Ok(0) | Err(_)));
        }
        for stream in &mut slow {
            assert!(matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_)));
        }
        let lasted = start.elapsed();
        assert!(lasted < Duration::from_secs(10), "{lasted:?}");

        // Many more at once than there is room for.
        let flood: Vec<TcpStream> = (0..scale / 20).map(|_| self.socket()).collect();
        meanwhile();
        (log_ins, flood.len().saturating_sub(64))
    }
}

fn resident_kib(agent: &Agent) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = crate::privileges::field(&status, "VmRSS:");
    line.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn prometheus_scrapes_on_while_others_attack() {
    turn!("prometheus_scrapes_on_while_others_attack");
    let site = Site::new("  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: ca.crt\n");
    site.authority
        .write(site.folder.path(), "client", "prometheus.example", 4000);
    let agent = Agent::start(&site.flags());
    let prometheus = Prometheus::start(&site, agent.address());
    wait_for("first scrape", PATIENCE, || {
        prometheus
            .value("sentry_build_info")
            .filter(|value| *value == 1.0)
    });
    let begun = Instant::now();
    let attack = Attack::new(&site, agent.address());
    attack.run(1000, || ());
    thread::sleep(Duration::from_secs(6));
    let before = resident_kib(&agent);
    let mut resident = vec![before];
    let (log_ins, refused) = attack.run(10_000, || {
        // One who comes anew is let in, too.
        let (status, _) = site.curl(&agent, "right", &[]).unwrap();
        assert_eq!(status, 200);
    });
    resident.push(resident_kib(&agent));
    thread::sleep(Duration::from_secs(7));
    resident.push(resident_kib(&agent));
    eprintln!("resident before, at the end, and later: {resident:?} KiB");
    assert_eq!(log_ins, 1000);
    for after in &resident[1..] {
        assert!(*after < before + 2048, "{resident:?} KiB");
    }

    // Every scrape of Prometheus was answered, each second.
    let elapsed = begun.elapsed().as_secs();
    let window = format!("up%5B{elapsed}s%5D");
    assert_eq!(
        prometheus.value(&format!("min_over_time({window})")),
        Some(1.0)
    );
    let scrapes = prometheus
        .value(&format!("count_over_time({window})"))
        .unwrap();
    let slowest = prometheus.value(&format!(
        "max_over_time(scrape_duration_seconds%5B{elapsed}s%5D)"
    ));
    eprintln!("{scrapes} scrapes in {elapsed} s, the slowest in {slowest:?} s");
    assert!(
        scrapes + 3.0 >= Duration::from_secs(elapsed).as_secs_f64(),
        "{scrapes} in {elapsed} s"
    );

    // And what others did was counted.
    let counted = |name: &str, reason: &str| {
        prometheus.value(&format!("{name}%7Breason%3D%22{reason}%22%7D"))
    };
    let failures = "sentry_http_authentication_failures_total";
    let of = |reason: &str| counted(failures, reason).unwrap();
    assert_eq!(of("wrong_password") + of("too_many") + of("busy"), 1100.0);
    assert!(of("wrong_password") < 30.0, "{}", of("wrong_password"));
    let errors = "sentry_http_tls_handshake_errors_total";
    // Half of them left at once, or with half of what it takes.
    assert!(counted(errors, "closed").unwrap() > 5000.0);
    assert_eq!(counted(errors, "timeout"), Some(40.0));
    assert_eq!(prometheus.value("sentry_http_timeouts_total"), Some(80.0));
    let all_refused = prometheus
        .value("sentry_http_connections_refused_total")
        .unwrap();
    assert!(
        all_refused >= f64::from(u32::try_from(refused).unwrap()),
        "{all_refused}"
    );
    drop(prometheus);
    agent.stop();
}
