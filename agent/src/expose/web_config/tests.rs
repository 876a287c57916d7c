use super::*;
use crate::expose::Limits;
use crate::expose::loopback::{Answer, Client, Server, quick, socket};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

const FILE: &str = "/etc/sentry/web.yml";

fn parsed(text: &str) -> Result<Settings, String> {
    format::parse(Path::new(FILE), text)
}

const TLS: &str = "tls_server_config: {cert_file: server.crt, key_file: /keys/server.key}\n";

#[test]
fn files_that_people_have_are_read() {
    for text in [
        "",
        "# nothing\n",
        "{}",
        "tls_server_config:\n",
        "tls_server_config: {cert_file: ''}",
    ] {
        let settings = parsed(text).unwrap();
        assert!(
            settings.tls.is_none() && settings.users.is_empty(),
            "{text:?}"
        );
        assert_eq!(settings.notes, [""; 0]);
    }
    let settings = parsed(
        "tls_server_config:\n  cert_file: server.crt\n  key_file: /keys/server.key\n  client_auth_type: RequireAndVerifyClientCert\n\
         \x20 client_ca_file: ../ca.crt\n  client_allowed_sans: [prometheus.example, 192.0.2.1]\n  min_version: TLS13\n\
         http_server_config:\n  http2: false\n  headers:\n    X-Frame-Options: deny\n    X-Content-Type-Options: nosniff\n    X-XSS-Protection: ''\n\
         basic_auth_users:\n  alice: $2y$10$mDwo.lAisC94iLAyP81MCesa29IzH37oigHC/42V2pdJlUprsJPze\n  3: $2b$10$mDwo.lAisC94iLAyP81MCesa29IzH37oigHC/42V2pdJlUprsJPze\n\
         rate_limit:\n  interval: 1s\n  burst: 20\n",
    )
    .unwrap();
    let tls = settings.tls.unwrap();
    let path = |pem: &Pem| match &pem.source {
        PemSource::File(path) => path.display().to_string(),
        PemSource::Inline(text) => text.clone(),
    };
    assert_eq!(path(&tls.certificate), "/etc/sentry/server.crt");
    assert_eq!(path(&tls.key), "/keys/server.key");
    assert_eq!(path(&tls.client_ca.unwrap()), "/etc/sentry/../ca.crt");
    assert_eq!(tls.client_auth, ClientAuth::RequireAndVerify);
    assert_eq!(
        tls.client_allowed_sans.unwrap(),
        ["prometheus.example", "192.0.2.1"]
    );
    assert_eq!(tls.versions, [&rustls::version::TLS13]);
    assert!(tls.prefer_server_cipher_suites);
    assert_eq!((tls.cipher_suites.len(), tls.groups.len()), (9, 3));
    let headers: Vec<String> = settings
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {value:?}"))
        .collect();
    assert_eq!(
        headers,
        [
            "x-content-type-options: \"nosniff\"",
            "x-frame-options: \"deny\""
        ]
    );
    assert_eq!(settings.users.keys().collect::<Vec<_>>(), ["3", "alice"]);
    assert_eq!(settings.warnings, [""; 0]);
    let rate = Rate {
        interval: Duration::from_secs(1),
        burst: 20,
    };
    assert_eq!(settings.rate, Some(rate));
    assert_eq!(settings.notes, [""; 0]);

    let inline = parsed("tls_server_config: {cert: C, key: K, client_ca: A, client_auth_type: VerifyClientCertIfGiven}").unwrap();
    let inline = inline.tls.unwrap();
    assert_eq!(
        (path(&inline.certificate), path(&inline.key)),
        ("C".into(), "K".into())
    );
    assert_eq!(inline.client_auth, ClientAuth::VerifyIfGiven);
    for (name, kind) in [
        ("NoClientCert", ClientAuth::None),
        ("RequestClientCert", ClientAuth::Request),
        ("RequireAnyClientCert", ClientAuth::RequireAny),
        ("RequireClientCert", ClientAuth::RequireAny),
    ] {
        let text = format!("tls_server_config: {{cert: C, key: K, client_auth_type: {name}}}");
        assert_eq!(parsed(&text).unwrap().tls.unwrap().client_auth, kind);
    }
    for (interval, expected) in [
        ("500ms", 500),
        ("1m30s", 90_000),
        ("1.5s", 1500),
        ("1h", 3_600_000),
    ] {
        let text = format!("rate_limit: {{interval: {interval}, burst: 1}}");
        let rate = parsed(&text).unwrap().rate.unwrap();
        assert_eq!(rate.interval.as_millis(), expected);
    }
    assert_eq!(
        parsed("rate_limit: {interval: 0, burst: 0}").unwrap().rate,
        None
    );
}

#[test]
fn what_is_not_to_be_had_and_does_no_harm_is_said() {
    let of = |more: &str| {
        let text = format!("tls_server_config:\n  cert: C\n  key: K\n  {more}\n");
        let settings = parsed(&text).unwrap();
        (settings.tls.unwrap(), settings.notes)
    };
    let (tls, notes) = of("min_version: TLS10");
    assert_eq!(
        tls.versions,
        [&rustls::version::TLS12, &rustls::version::TLS13]
    );
    assert_eq!(
        notes,
        [
            "web config file /etc/sentry/web.yml:4: tls_server_config.min_version: TLS10 is taken for TLS12, the oldest there is"
        ]
    );
    let (tls, notes) = of("max_version: TLS12");
    assert_eq!(tls.versions, [&rustls::version::TLS12]);
    assert_eq!(notes, [""; 0]);
    let (tls, notes) = of(
        "cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_AES_128_GCM_SHA256]",
    );
    assert_eq!(tls.cipher_suites.len(), 4);
    assert_eq!(
        notes,
        [
            "web config file /etc/sentry/web.yml:4: tls_server_config.cipher_suites: left out, since there are none here: TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA"
        ]
    );
    let (tls, notes) = of("curve_preferences: [CurveP521, CurveP384]");
    let groups: Vec<_> = tls.groups.iter().map(|group| group.name()).collect();
    assert_eq!(groups, [rustls::NamedGroup::secp384r1]);
    assert_eq!(
        notes,
        [
            "web config file /etc/sentry/web.yml:4: tls_server_config.curve_preferences: left out, since there are none here: CurveP521"
        ]
    );
    let (tls, _) = of("prefer_server_cipher_suites: no");
    assert!(!tls.prefer_server_cipher_suites);
    assert_eq!(
        parsed("http_server_config: {http2: yes}").unwrap().notes,
        [
            "web config file /etc/sentry/web.yml:1: http_server_config.http2: of no effect, since only HTTP/1.1 is served, which every client of HTTP/2 speaks as well"
        ]
    );
    assert_eq!(
        parsed(&format!(
            "basic_auth_users: {{a: $2y$10${}}}",
            ".".repeat(53)
        ))
        .unwrap()
        .warnings,
        [
            "web config file /etc/sentry/web.yml: basic_auth_users without tls_server_config: passwords cross the network in plain text"
        ]
    );
}

#[test]
fn what_verifies_nothing_is_a_warning() {
    let of = |more: &str| {
        let text = format!("tls_server_config:\n  cert: C\n  key: K\n  {more}\n");
        let settings = parsed(&text).unwrap();
        assert_eq!(settings.notes, [""; 0]);
        settings.warnings
    };
    for kind in ["RequestClientCert", "RequireAnyClientCert"] {
        assert_eq!(
            of(&format!("client_ca: A\n  client_auth_type: {kind}")),
            [format!(
                "web config file /etc/sentry/web.yml:4: tls_server_config.client_ca: {kind} verifies nothing: clients are told of the authority, and a certificate of any other will do"
            )]
        );
    }
    assert_eq!(
        of("client_allowed_sans: [a]\n  client_auth_type: RequireAnyClientCert"),
        [
            "web config file /etc/sentry/web.yml:4: tls_server_config.client_allowed_sans: RequireAnyClientCert verifies nothing: anybody can make a certificate with these names"
        ]
    );
    assert_eq!(of("client_auth_type: RequireAnyClientCert"), [""; 0]);
    let verified =
        "client_ca: A\n  client_allowed_sans: [a]\n  client_auth_type: RequireAndVerifyClientCert";
    assert_eq!(of(verified), [""; 0]);
}

#[test]
fn hashes_of_different_costs_are_said() {
    let hash = |cost: u32| format!("$2y${cost:02}${}", ".".repeat(53));
    let (low, high) = (hash(5), hash(12));
    let notes = |text: &str| parsed(text).unwrap().notes;
    assert_eq!(
        notes(&format!(
            "basic_auth_users: {{a: {high}, b: {low}, c: {high}}}"
        )),
        [
            "web config file /etc/sentry/web.yml:1: basic_auth_users: hashes cost from 5 to 12: by how long an answer takes, those of a lower cost are found to be users"
        ]
    );
    assert_eq!(
        notes(&format!("basic_auth_users: {{a: {high}, c: {high}}}")),
        [""; 0]
    );
}

#[test]
fn a_bad_file_is_one_line() {
    let suites = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256";
    let hash = "not a hash of bcrypt of a cost from 4 to 16; allowed: what `htpasswd -nBC 10 alice` prints behind the colon";
    let cost = |cost: &str| format!("basic_auth_users: {{alice: $2y${cost}${}}}", ".".repeat(53));
    for (text, expected) in [
        ("hello".to_owned(), ": not a mapping; allowed: basic_auth_users, http_server_config, rate_limit, tls_server_config".to_owned()),
        ("a: [b".into(), ":1:4: not valid YAML: unclosed bracket '['".into()),
        ("\ntls_server: {}".into(), ":2: tls_server: unknown key; did you mean tls_server_config?".into()),
        ("users: {}".into(), ":1: users: unknown key; allowed: basic_auth_users, http_server_config, rate_limit, tls_server_config".into()),
        ("tls_server_config: on".into(), ":1: tls_server_config: not a mapping; allowed: cert, cert_file, cipher_suites, client_allowed_sans, client_auth_type, client_ca, client_ca_file, curve_preferences, key, key_file, max_version, min_version, prefer_server_cipher_suites".into()),
        ("tls_server_config:\n  certfile: a".into(), ":2: tls_server_config.certfile: unknown key; did you mean cert_file?".into()),
        ("tls_server_config:\n  cert: a\n  cert: b".into(), ":3: tls_server_config.cert: duplicate key, first on line 2".into()),
        ("tls_server_config:\n  cert_file: a".into(), ":1: tls_server_config: key is missing; allowed: key or key_file".into()),
        ("tls_server_config:\n  key: a".into(), ":1: tls_server_config: cert is missing; allowed: cert or cert_file".into()),
        ("tls_server_config:\n  client_auth_type: RequireAnyClientCert".into(), ":1: tls_server_config: cert is missing; allowed: cert or cert_file".into()),
        ("tls_server_config:\n  min_version: TLS13".into(), ":2: tls_server_config.min_version: of no effect without a certificate; allowed: with cert_file and key_file".into()),
        ("tls_server_config: {cert: a, cert_file: b, key: c}".into(), ":1: tls_server_config.cert: given along with cert_file; allowed: one of them".into()),
        ("tls_server_config: {cert_file: [a]}".into(), ":1: tls_server_config.cert_file: a list; allowed: one value".into()),
        (format!("{TLS}rate_limits: 1"), ":2: rate_limits: unknown key; did you mean rate_limit?".into()),
        ("tls_server_config: {client_auth_type: Verify}".into(), ":1: tls_server_config.client_auth_type: invalid value 'Verify'; allowed: NoClientCert, RequestClientCert, RequireAnyClientCert, VerifyClientCertIfGiven, RequireAndVerifyClientCert".into()),
        ("tls_server_config: {cert: a, key: b, client_auth_type: RequireAndVerifyClientCert}".into(), ":1: tls_server_config.client_auth_type: there is nothing to verify with; allowed: with client_ca_file or client_ca".into()),
        ("tls_server_config: {cert: a, key: b, client_ca_file: c}".into(), ":1: tls_server_config.client_ca_file: no client is asked for a certificate; allowed: with another client_auth_type than NoClientCert".into()),
        ("tls_server_config: {cert: a, key: b, client_allowed_sans: [c], client_auth_type: RequestClientCert}".into(), ":1: tls_server_config.client_allowed_sans: of no effect; allowed: with client_auth_type RequireAndVerifyClientCert or RequireAnyClientCert".into()),
        ("tls_server_config: {client_allowed_sans: c}".into(), ":1: tls_server_config.client_allowed_sans: not a list; allowed: a list".into()),
        ("tls_server_config: {min_version: TLS9}".into(), ":1: tls_server_config.min_version: invalid value 'TLS9'; allowed: TLS10, TLS11, TLS12, TLS13".into()),
        ("tls_server_config: {max_version: TLS11}".into(), ":1: tls_server_config.max_version: invalid value 'TLS11'; allowed: TLS12, TLS13".into()),
        ("tls_server_config: {max_version: TLS12, min_version: TLS13}".into(), ":1: tls_server_config.min_version: invalid value 'TLS13'; allowed: none above max_version, TLS12".into()),
        ("tls_server_config: {cipher_suites: [TLS_FAST]}".into(), format!(":1: tls_server_config.cipher_suites: invalid value 'TLS_FAST'; allowed: {suites}, TLS_AES_256_GCM_SHA384, TLS_AES_128_GCM_SHA256, TLS_CHACHA20_POLY1305_SHA256")),
        ("tls_server_config: {max_version: TLS12, cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA]}".into(), format!(":1: tls_server_config.cipher_suites: none of them can be used with TLS 1.2; allowed: {suites}")),
        ("tls_server_config: {curve_preferences: [X448]}".into(), ":1: tls_server_config.curve_preferences: invalid value 'X448'; allowed: CurveP256, CurveP384, X25519".into()),
        ("tls_server_config: {curve_preferences: [CurveP521]}".into(), ":1: tls_server_config.curve_preferences: none of them is to be had; allowed: CurveP256, CurveP384, X25519".into()),
        ("tls_server_config: {prefer_server_cipher_suites: 2}".into(), ":1: tls_server_config.prefer_server_cipher_suites: invalid value '2'; allowed: true, false".into()),
        ("http_server_config: {http3: true}".into(), ":1: http_server_config.http3: unknown key; did you mean http2?".into()),
        ("http_server_config:\n  headers:\n    Server: x".into(), ":3: http_server_config.headers.Server: unknown key; allowed: Content-Security-Policy, Strict-Transport-Security, X-Content-Type-Options, X-Frame-Options, X-XSS-Protection".into()),
        ("http_server_config: {headers: {X-Frame-Options: maybe}}".into(), ":1: http_server_config.headers.X-Frame-Options: invalid value 'maybe'; allowed: deny, sameorigin".into()),
        ("http_server_config: {headers: {X-XSS-Protection: \"a\\nb\"}}".into(), ":1: http_server_config.headers.X-XSS-Protection: invalid value 'a\\nb'; allowed: visible characters of ASCII, in one line".into()),
        ("basic_auth_users: [alice]".into(), ":1: basic_auth_users: not a mapping; allowed: a line such as 'name: value' for each".into()),
        ("basic_auth_users: {alice: secret}".into(), format!(":1: basic_auth_users.alice: {hash}")),
        ("basic_auth_users: {alice: }".into(), format!(":1: basic_auth_users.alice: {hash}")),
        (cost("17"), format!(":1: basic_auth_users.alice: {hash}")),
        (cost("03"), format!(":1: basic_auth_users.alice: {hash}")),
        // The last character has more bits than there are.
        (format!("basic_auth_users: {{alice: $2y$10${}/}}", ".".repeat(52)), format!(":1: basic_auth_users.alice: {hash}")),
        (format!("basic_auth_users: {{alice: $2y$10${}/{}}}", ".".repeat(21), ".".repeat(31)), format!(":1: basic_auth_users.alice: {hash}")),
        (format!("basic_auth_users: {{alice: $2x$10${}}}", ".".repeat(53)), format!(":1: basic_auth_users.alice: {hash}")),
        ("tls_server_config:\n  cert: a\n  key_file: |\n    -----BEGIN PRIVATE KEY-----\n    MC4CAQ\n    -----END PRIVATE KEY-----\n".into(), ":3: tls_server_config.key_file: PEM itself; allowed: a file's name, or PEM in key".into()),
        ("tls_server_config: {key_file: '-----BEGIN PRIVATE KEY----- MC4CAQ'}".into(), ":1: tls_server_config.key_file: PEM itself; allowed: a file's name, or PEM in key".into()),
        ("tls_server_config: {cert_file: \"a\\nb\"}".into(), ":1: tls_server_config.cert_file: PEM itself; allowed: a file's name, or PEM in cert".into()),
        (cost("4"), format!(":1: basic_auth_users.alice: {hash}")),
        ("basic_auth_users: {'a:b': x}".into(), ":1: basic_auth_users.a:b: no name that a client could send; allowed: one without a colon".into()),
        ("rate_limit: {burst: 3}".into(), ":1: rate_limit.burst: of no effect; allowed: with interval".into()),
        ("rate_limit: {interval: 1s}".into(), ":1: rate_limit.interval: burst is missing, and no request would be answered; allowed: a number from 1 to 1000000".into()),
        ("rate_limit: {interval: 1s, burst: 0}".into(), ":1: rate_limit.burst: invalid value '0'; allowed: a number from 1 to 1000000".into()),
        ("rate_limit: {interval: soon, burst: 1}".into(), ":1: rate_limit.interval: invalid value 'soon'; allowed: a duration such as 1s, 100ms or 1m30s, up to 1h".into()),
        ("rate_limit: {interval: 2h, burst: 1}".into(), ":1: rate_limit.interval: invalid value '2h'; allowed: a duration such as 1s, 100ms or 1m30s, up to 1h".into()),
        ("rate_limit: {interval: -1s, burst: 1}".into(), ":1: rate_limit.interval: invalid value '-1s'; allowed: a duration such as 1s, 100ms or 1m30s, up to 1h".into()),
    ] {
        let error = one_line(&parsed(&text).unwrap_err());
        assert_eq!(error, format!("web config file {FILE}{expected}"), "{text}");
    }
}

/// A folder for files, gone on drop.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sentry-web-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Writes a file that takes the place of another, as careful programs do.
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let (new, path) = (self.0.join("new"), self.0.join(name));
        fs::write(&new, text).unwrap();
        fs::rename(&new, &path).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// PEM of a certificate and its key.
struct Identity {
    certificate: String,
    key: String,
}

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

    fn sign(&self, params: &CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Identity {
            certificate,
            key: key.serialize_pem(),
        }
    }

    fn identity(&self, name: &str) -> Identity {
        self.sign(&CertificateParams::new(vec![name.to_owned()]).unwrap())
    }
}

/// How a client speaks TLS: whom it trusts, and what it shows.
fn client_config(trusts: &Authority, shows: Option<&Identity>) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(trusts.pem.as_bytes()).unwrap())
        .unwrap();
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    Arc::new(match shows {
        Some(Identity { certificate, key }) => {
            let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder
                .with_client_auth_cert(vec![certificate], key)
                .unwrap()
        }
        None => builder.with_no_client_auth(),
    })
}

fn session(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
) -> StreamOwned<ClientConnection, std::net::TcpStream> {
    let name = "sentry.example".try_into().unwrap();
    let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    StreamOwned::new(connection, socket(address))
}

/// An answer over TLS, or the error that the handshake or the server ends in.
fn ask(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
    headers: &str,
) -> Result<Answer, io::Error> {
    let mut session = session(address, config);
    while session.conn.is_handshaking() {
        session.conn.complete_io(&mut session.sock)?;
    }
    // A refusal of the client's certificate comes after its side of the handshake has ended.
    io::Write::write_all(
        &mut session,
        format!("GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n")
            .as_bytes(),
    )?;
    let mut answer = Vec::new();
    session.read_to_end(&mut answer)?;
    Ok(Client::over(io::Cursor::new(answer)).answer())
}

/// A server with files of its own.
struct Secured {
    folder: Folder,
    authority: Authority,
    file: PathBuf,
    server: Server,
    web: Arc<WebConfig>,
}

impl Secured {
    fn start(text: &str) -> Self {
        Self::start_with(text, String::new, quick())
    }

    /// `SERVER` in the text stands for certificate and key, `CLIENT_CA` for the authority of clients: a hash of a
    /// password has no such character as `_` in it.
    fn start_with(
        text: &str,
        scrape: impl Fn() -> String + Send + Sync + 'static,
        limits: Limits,
    ) -> Self {
        let (folder, authority) = (Folder::new(), Authority::new());
        let Identity { certificate, key } = authority.identity("sentry.example");
        folder.write("server.crt", &certificate);
        folder.write("server.key", &key);
        folder.write("ca.crt", &authority.pem);
        let file = folder.write("web.yml", &expanded(text));
        let stats = Arc::new(HttpStats::default());
        let web = WebConfig::load_checked_every(&file, Arc::clone(&stats), Duration::ZERO).unwrap();
        let web = Arc::new(web);
        let server = Server::start_with("/metrics", scrape, limits, stats, Some(Arc::clone(&web)));
        Self {
            folder,
            authority,
            file,
            server,
            web,
        }
    }

    fn write(&self, text: &str) {
        self.folder.write("web.yml", &expanded(text));
    }

    fn get(&self, shows: Option<&Identity>, headers: &str) -> Result<Answer, io::Error> {
        ask(
            self.server.address,
            &client_config(&self.authority, shows),
            headers,
        )
    }

    /// Waits until these are the failures, which are counted once the connection has ended.
    fn expect_handshake_failures(&self, expected: &[(&'static str, u64)]) {
        let what = format!("{expected:?}");
        self.server.wait_for(&what, |stats| {
            let all = stats.handshake_failures_total();
            all.filter(|(_, count)| *count > 0)
                .eq(expected.iter().copied())
        });
    }

    fn authentication_failures(&self) -> Vec<(&'static str, u64)> {
        let all = self.server.stats.authentication_failures_total();
        all.filter(|(_, count)| *count > 0).collect()
    }

    fn reads(&self) -> (bool, u64) {
        let reads = self.server.stats.web_config().unwrap();
        assert!(reads.last_success_seconds > 1_700_000_000);
        (reads.last_was_successful, reads.failures_total)
    }
}

fn expanded(text: &str) -> String {
    text.replace("SERVER", "cert_file: server.crt, key_file: server.key")
        .replace("CLIENT_CA", "client_ca_file: ca.crt")
}

fn user(name: &str, password: &str) -> String {
    format!(
        "basic_auth_users: {{{name}: {}}}\n",
        bcrypt::hash(password, 4).unwrap()
    )
}

fn basic(user: &str, password: &str) -> String {
    let encoded = BASE64_STANDARD.encode(format!("{user}:{password}"));
    format!("Authorization: Basic {encoded}\r\n")
}

const ENCRYPTED: &str = "tls_server_config: {SERVER}\n";

#[test]
fn tls_and_a_password() {
    let secured = Secured::start(&format!("{ENCRYPTED}{}", user("alice", "right")));
    for path in [
        "/",
        "/healthz",
        "/readyz",
        "/metrics",
        "/api/v1/status",
        "/-/page/main.js",
        "/nonsense",
    ] {
        let config = client_config(&secured.authority, None);
        let mut client = Client::over(session(secured.server.address, &config));
        let refused = client.get(path, "");
        assert_eq!(refused.status, 401, "{path}");
        assert_eq!(refused.header("connection"), Some("close"));
        assert_eq!(
            refused.header("www-authenticate"),
            Some("Basic realm=\"sentry\"")
        );
        assert_eq!(refused.text(), "a user and a password are needed\n");
        let mut client = Client::over(session(secured.server.address, &config));
        assert_eq!(client.get(path, &basic("alice", "wrong")).status, 401);
        let mut client = Client::over(session(secured.server.address, &config));
        for _ in 0..2 {
            let answer = client.get(path, &basic("alice", "right"));
            assert_ne!(answer.status, 401);
            assert_eq!(answer.header("connection"), None);
        }
    }
    assert_eq!(
        secured.get(None, &basic("bob", "right")).unwrap().status,
        401
    );
    assert_eq!(
        secured.get(None, &basic("alice", "right")).unwrap().text(),
        "ok\n"
    );
    assert_eq!(
        secured.authentication_failures(),
        [("missing", 7), ("unknown_user", 1), ("wrong_password", 7)]
    );
    secured.expect_handshake_failures(&[]);
    assert_eq!(secured.reads(), (true, 0));
    let files = secured.web.files();
    assert_eq!(
        files,
        ["web.yml", "server.crt", "server.key"].map(|name| secured.folder.0.join(name))
    );
    assert_eq!(secured.web.current().summary(), "TLS, 1 user");
}

#[test]
fn a_refused_request_with_a_body_ends_the_connection() {
    let secured = Secured::start(&user("alice", "right"));
    let mut client = Client::connect(secured.server.address);
    let answer = client.get("/healthz", "Content-Length: 30\r\n");
    assert_eq!(
        (answer.status, answer.header("connection")),
        (401, Some("close"))
    );
}

#[test]
fn http_on_a_port_of_https_is_told_so() {
    let secured = Secured::start(ENCRYPTED);
    let answer = Client::connect(secured.server.address).get("/metrics", "");
    assert_eq!(answer.status, 400);
    assert_eq!(
        answer.text(),
        "this port speaks HTTPS; ask by https:// instead"
    );
    let mut nonsense = Client::connect(secured.server.address);
    assert!(nonsense.send(&[0; 100]));
    nonsense.rest();
    secured.expect_handshake_failures(&[("not_tls", 2)]);
    // What does not trust the server gives up by itself.
    let stranger = client_config(&Authority::new(), None);
    ask(secured.server.address, &stranger, "").unwrap_err();
    secured.expect_handshake_failures(&[("refused_by_client", 1), ("not_tls", 2)]);
    drop(Client::connect(secured.server.address));
    secured.expect_handshake_failures(&[("refused_by_client", 1), ("not_tls", 2), ("closed", 1)]);
    assert_eq!(secured.get(None, "").unwrap().status, 200);
}

/// Certificates of clients: one that is good, and one for each way in which it may not be.
struct Clients {
    good: Identity,
    expired: Identity,
    early: Identity,
    untrusted: Identity,
    nameless: Identity,
}

impl Clients {
    fn new(authority: &Authority) -> Self {
        let named = || CertificateParams::new(vec!["prometheus.example".to_owned()]).unwrap();
        let (mut expired, mut early, mut nameless) = (named(), named(), named());
        expired.not_after = rcgen::date_time_ymd(2020, 1, 1);
        early.not_before = rcgen::date_time_ymd(4000, 1, 1);
        nameless.subject_alt_names = vec![SanType::DnsName("other.example".try_into().unwrap())];
        Self {
            good: authority.sign(&named()),
            expired: authority.sign(&expired),
            early: authority.sign(&early),
            untrusted: Authority::new().sign(&named()),
            nameless: authority.sign(&nameless),
        }
    }
}

#[test]
fn clients_without_a_good_certificate_are_refused_and_counted() {
    let secured = Secured::start(
        "tls_server_config: {SERVER, CLIENT_CA, client_auth_type: RequireAndVerifyClientCert, client_allowed_sans: [prometheus.example]}",
    );
    let clients = Clients::new(&secured.authority);
    secured.get(None, "").unwrap_err();
    for bad in [
        &clients.expired,
        &clients.early,
        &clients.untrusted,
        &clients.nameless,
    ] {
        secured.get(Some(bad), "").unwrap_err();
    }
    assert_eq!(secured.get(Some(&clients.good), "").unwrap().text(), "ok\n");
    secured.expect_handshake_failures(&[
        ("no_certificate", 1),
        ("certificate_expired", 2),
        ("certificate_untrusted", 1),
        ("certificate_not_allowed", 1),
    ]);
}

#[test]
fn names_of_clients_are_held_to_in_each_version() {
    for version in ["TLS12", "TLS13"] {
        let secured = Secured::start(&format!(
            "tls_server_config: {{SERVER, CLIENT_CA, max_version: {version}, client_auth_type: RequireAndVerifyClientCert, client_allowed_sans: [prometheus.example]}}"
        ));
        let clients = Clients::new(&secured.authority);
        secured.get(Some(&clients.nameless), "").unwrap_err();
        assert_eq!(secured.get(Some(&clients.good), "").unwrap().status, 200);
        secured.expect_handshake_failures(&[("certificate_not_allowed", 1)]);
    }
}

#[test]
fn a_client_whose_authority_is_not_trusted_any_more_is_out() {
    let secured = Secured::start(
        "tls_server_config: {SERVER, CLIENT_CA, client_auth_type: RequireAndVerifyClientCert}",
    );
    let (before, next) = (secured.authority.identity("a"), Authority::new());
    let after = next.identity("a");
    let connect = |shows| {
        let config = client_config(&secured.authority, Some(shows));
        Client::over(session(secured.server.address, &config))
    };
    let (mut kept, mut other) = (connect(&before), connect(&before));
    for client in [&mut kept, &mut other] {
        assert_eq!(client.get("/healthz", "").status, 200);
    }
    assert!(secured.get(Some(&after), "").is_err());
    secured.folder.write("ca.crt", &next.pem);
    // Within the connections that it has, too, and without an answer.
    for client in [&mut kept, &mut other] {
        client.request("GET", "/healthz", "");
        assert_eq!(client.drain(), (0, false));
    }
    assert!(secured.get(Some(&before), "").is_err());
    let mut new = connect(&after);
    for _ in 0..2 {
        assert_eq!(new.get("/healthz", "").status, 200);
    }
    assert_eq!(secured.reads(), (true, 0));
}

#[test]
fn each_policy_for_certificates_of_clients() {
    for (policy, none, untrusted, expired) in [
        ("client_auth_type: NoClientCert", true, true, true),
        ("client_auth_type: RequestClientCert", true, true, true),
        ("client_auth_type: RequireAnyClientCert", false, true, true),
        (
            "CLIENT_CA, client_auth_type: VerifyClientCertIfGiven",
            true,
            false,
            false,
        ),
        (
            "CLIENT_CA, client_auth_type: RequireAndVerifyClientCert",
            false,
            false,
            false,
        ),
    ] {
        for version in ["TLS12", "TLS13"] {
            let secured = Secured::start(&format!(
                "tls_server_config: {{SERVER, min_version: {version}, max_version: {version}, {policy}}}"
            ));
            let clients = Clients::new(&secured.authority);
            let admits = |shows| secured.get(shows, "").is_ok();
            assert_eq!(admits(None), none, "{policy} {version}");
            assert_eq!(
                admits(Some(&clients.untrusted)),
                untrusted,
                "{policy} {version}"
            );
            assert_eq!(
                admits(Some(&clients.expired)),
                expired,
                "{policy} {version}"
            );
            assert!(admits(Some(&clients.good)), "{policy} {version}");
        }
    }
}

#[test]
fn a_certificate_without_its_key_is_of_no_use() {
    let secured =
        Secured::start("tls_server_config: {SERVER, client_auth_type: RequireAnyClientCert}");
    let (mine, other) = (
        secured.authority.identity("a"),
        secured.authority.identity("a"),
    );
    let stolen = Identity {
        certificate: mine.certificate,
        key: other.key,
    };
    // The library of this client would not even try.
    let certificate = CertificateDer::from_pem_slice(stolen.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(stolen.key.as_bytes()).unwrap();
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    let pair = Arc::new(rustls::sign::CertifiedKey::new(vec![certificate], key));
    let mut config = (*client_config(&secured.authority, None)).clone();
    config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(pair));
    ask(secured.server.address, &Arc::new(config), "").unwrap_err();
    secured.expect_handshake_failures(&[("certificate_untrusted", 1)]);
}

const MILLISECOND: Duration = Duration::from_millis(1);

#[test]
fn a_slow_client_is_cut_off_within_and_after_the_handshake() {
    let limits = Limits {
        head: 300 * MILLISECOND,
        ..quick()
    };
    let secured = Secured::start_with(ENCRYPTED, String::new, limits);
    let config = client_config(&secured.authority, None);
    let mut hello = Vec::new();
    session(secured.server.address, &config)
        .conn
        .write_tls(&mut hello)
        .unwrap();
    let mut silent = Client::connect(secured.server.address);
    let mut trickle = Client::connect(secured.server.address);
    let start = Instant::now();
    for byte in hello.iter().take(100) {
        if !trickle.send(&[*byte]) {
            break;
        }
        thread::sleep(10 * MILLISECOND);
    }
    let (silent, _) = silent.drain();
    assert_eq!(silent, 0);
    assert!(start.elapsed() >= 290 * MILLISECOND && start.elapsed() < Duration::from_secs(5));
    secured
        .server
        .wait_for("the time-outs", |stats| stats.timeouts_total() == 2);
    secured.expect_handshake_failures(&[("closed", 1), ("timeout", 2)]);

    // Encrypted, then nothing but half a head.
    let mut session = session(secured.server.address, &config);
    io::Write::write_all(&mut session, b"GET /healthz HT").unwrap();
    let mut rest = Vec::new();
    let _ = session.read_to_end(&mut rest);
    assert_eq!(rest, b"");
    secured
        .server
        .wait_for("the third", |stats| stats.timeouts_total() == 3);
    secured.expect_handshake_failures(&[("closed", 1), ("timeout", 2)]);
    assert_eq!(secured.get(None, "").unwrap().status, 200);
}

#[test]
fn a_large_answer_comes_whole_and_a_reader_that_stalls_is_cut_off() {
    let large = || "sentry_x{cgroup=\"/a\"} 1\n".repeat(640_000);
    let limits = Limits {
        write_stall: 300 * MILLISECOND,
        ..quick()
    };
    let secured = Secured::start_with(ENCRYPTED, large, limits);
    let config = client_config(&secured.authority, None);
    let mut client = Client::over(session(secured.server.address, &config));
    let answer = client.get("/metrics", "Accept: application/openmetrics-text\r\n");
    assert!(answer.body == large().into_bytes());
    assert_eq!(secured.server.stats.timeouts_total(), 0);
    client.request("GET", "/metrics", "");
    secured
        .server
        .wait_for("the time-out", |stats| stats.timeouts_total() == 1);
    assert_eq!(secured.get(None, "").unwrap().status, 200);
}

#[test]
fn those_who_hold_on_without_a_password_make_room() {
    let limits = Limits {
        head: Duration::from_secs(60),
        ..quick()
    };
    let text = format!("{ENCRYPTED}{}", user("alice", "right"));
    let secured = Secured::start_with(&text, String::new, limits);
    let config = client_config(&secured.authority, None);
    let connect = || Client::over(session(secured.server.address, &config));
    let right = basic("alice", "right");
    let mut rightful = connect();
    assert_eq!(rightful.get("/metrics", &right).status, 200);
    let mut held: Vec<Client> = Vec::new();
    for number in 0..200 {
        // Within the handshake, and after a refusal, which ends it.
        let mut client = if number % 2 == 0 {
            Client::connect(secured.server.address)
        } else {
            connect()
        };
        if number % 2 == 1 {
            assert_eq!(client.get("/metrics", "").status, 401);
        }
        held.push(client);
        assert_eq!(rightful.get("/metrics", &right).status, 200);
        assert_eq!(connect().get("/metrics", &right).status, 200);
    }
    let refused = secured.server.stats.connections_refused_total();
    assert!((100 - 63..=100).contains(&refused), "{refused}");
}

#[test]
fn those_who_read_no_refusals_make_room() {
    let secured = Secured::start(&user("alice", "right"));
    let address = secured.server.address;
    let many = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2000);
    let mut held = Vec::new();
    for _ in 0..64 {
        let socket = socket(address);
        socket.set_write_timeout(Some(20 * MILLISECOND)).unwrap();
        let mut client = Client::over(socket);
        client.send(many.as_bytes());
        held.push(client);
    }
    // Or one that was not heard yet is among those that make room.
    secured.server.wait_for("all refusals", |stats| {
        stats
            .authentication_failures_total()
            .map(|(_, count)| count)
            .sum::<u64>()
            == 64
    });
    for _ in 0..3 {
        let mut rightful = Client::connect(address);
        let answer = rightful.get("/metrics", &basic("alice", "right"));
        assert_eq!(answer.status, 200);
    }
    // One answer for each connection: what comes behind is not looked at.
    assert_eq!(secured.authentication_failures(), [("missing", 64)]);
}

/// A connection from an address of this host that others do not use.
fn socket_from(from: &str, to: SocketAddr) -> std::net::TcpStream {
    let runtime = crate::expose::runtime().unwrap();
    let connected = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(from.parse().unwrap(), 0))?;
        socket.connect(to).await?.into_std()
    });
    let connected = connected.unwrap();
    connected.set_nonblocking(false).unwrap();
    connected
}

#[test]
fn an_address_pushes_out_its_own() {
    let secured = Secured::start(ENCRYPTED);
    let address = secured.server.address;
    let config = client_config(&secured.authority, None);
    let name = "sentry.example".try_into().unwrap();
    let connection = ClientConnection::new(config, name).unwrap();
    // The oldest of all, and within its handshake.
    let mut slow = StreamOwned::new(connection, socket_from("127.0.0.2", address));
    slow.conn.write_tls(&mut slow.sock).unwrap();
    let held: Vec<_> = (0..200).map(|_| socket(address)).collect();
    secured.server.wait_for("those beyond the bound", |stats| {
        stats.connections_refused_total() == 137
    });
    assert_eq!(Client::over(slow).get("/healthz", "").status, 200);
    drop(held);
}

#[test]
fn a_thousand_failed_log_ins_do_not_hold_up_the_rightful() {
    let secured = Secured::start(&user("alice", "right"));
    let address = secured.server.address;
    let mut rightful = Client::connect(address);
    assert_eq!(
        rightful.get("/metrics", &basic("alice", "right")).status,
        200
    );
    let start = Instant::now();
    let attackers: Vec<_> = (0..10)
        .map(|attacker| {
            thread::spawn(move || {
                let mut busy = 0;
                let statuses = (0..100).map(|n| {
                    let headers = basic("alice", &format!("{attacker}-{n}"));
                    loop {
                        let status = Client::connect(address).get("/metrics", &headers).status;
                        if status != 503 {
                            return status;
                        }
                        busy += 1;
                    }
                });
                let hashed = statuses.filter(|status| *status == 401).count();
                (hashed, busy)
            })
        })
        .collect();
    let mut slowest = Duration::ZERO;
    let mut scrapes = 0;
    while attackers.iter().any(|attacker| !attacker.is_finished()) || scrapes < 10 {
        let asked = Instant::now();
        assert_eq!(
            rightful.get("/metrics", &basic("alice", "right")).status,
            200
        );
        slowest = slowest.max(asked.elapsed());
        scrapes += 1;
    }
    let (mut hashed, mut busy) = (0, 0);
    for attacker in attackers {
        let counts = attacker.join().unwrap();
        hashed += counts.0;
        busy += counts.1;
    }
    // Those of the burst, and one for each six seconds.
    let refilled = usize::try_from(start.elapsed().as_secs() / 6).unwrap();
    assert!((10..=10 + refilled).contains(&hashed), "{hashed}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    let failures = secured.authentication_failures();
    let counted: u64 = failures.iter().map(|(_, count)| count).sum();
    assert_eq!(counted, 1000 + busy, "{failures:?}");
    assert!(
        failures.contains(&("wrong_password", hashed as u64)),
        "{failures:?}"
    );
    let refused = Client::connect(address).get("/metrics", &basic("alice", "wrong"));
    assert_eq!(refused.status, 429);
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=6).contains(&wait), "{wait}");
}

#[test]
fn requests_beyond_the_rate_get_429() {
    let secured = Secured::start("rate_limit: {interval: 1m, burst: 3}");
    let mut client = Client::connect(secured.server.address);
    let statuses = [(); 5].map(|()| client.get("/healthz", "").status);
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
    assert_eq!(secured.server.stats.requests_limited_total(), 2);
    let limited = client.get("/healthz", "");
    assert_eq!(limited.header("retry-after"), Some("60"));
    // It stays for one who was let in, and not for others.
    assert_eq!(limited.header("connection"), None);
    let limited = Client::connect(secured.server.address).get("/healthz", "");
    assert_eq!(
        (limited.status, limited.header("connection")),
        (429, Some("close"))
    );
}

#[test]
fn headers_of_the_file_are_on_each_answer() {
    let secured = Secured::start(
        "http_server_config: {headers: {X-Frame-Options: deny, Content-Security-Policy: default-src 'self'}}",
    );
    let mut client = Client::connect(secured.server.address);
    for path in ["/healthz", "/nonsense"] {
        let answer = client.get(path, "");
        assert_eq!(answer.header("x-frame-options"), Some("deny"));
        assert_eq!(
            answer.header("content-security-policy"),
            Some("default-src 'self'")
        );
    }
    // The page has one that it needs.
    let policy = client
        .get("/", "")
        .header("content-security-policy")
        .unwrap()
        .to_owned();
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
}

#[test]
fn users_are_read_anew() {
    let secured = Secured::start(&user("alice", "old"));
    let mut client = Client::connect(secured.server.address);
    let mut kept = |password: &str| client.get("/healthz", &basic("alice", password)).status;
    assert_eq!(kept("old"), 200);
    secured.write(&user("alice", "new"));
    // On the same connection, without delay.
    assert_eq!((kept("new"), kept("old")), (200, 401));
    let status = |password: &str| {
        let mut client = Client::connect(secured.server.address);
        client.get("/healthz", &basic("alice", password)).status
    };
    // What is wrong is refused, once for all requests.
    secured.write("basic_auth_users: {alice: plain}");
    for _ in 0..3 {
        assert_eq!((status("new"), secured.reads()), (200, (false, 1)));
    }
    // So is what would let everybody in.
    secured.write("");
    assert_eq!((status("new"), secured.reads()), (200, (false, 2)));
    // What cannot be read is tried again each time, which is said once, unless somebody asks for it.
    let seen = lock(&secured.web.seen).clone();
    fs::remove_file(&secured.file).unwrap();
    for _ in 0..3 {
        assert_eq!((status("new"), secured.reads()), (200, (false, 3)));
    }
    assert_eq!(*lock(&secured.web.seen), seen);
    secured.web.reload().unwrap_err();
    assert_eq!(secured.reads(), (false, 4));
    secured.write(&user("alice", "newest"));
    assert_eq!((status("new"), status("newest")), (401, 200));
    assert_eq!(secured.reads(), (true, 4));
}

#[test]
fn what_is_refused_later_is_one_line() {
    let secured = Secured::start(&format!("{ENCRYPTED}{}", user("alice", "a")));
    let file = secured.file.display();
    let reload = |text: &str| {
        secured.write(text);
        secured.web.reload().unwrap_err().to_string()
    };
    assert_eq!(
        reload(""),
        format!(
            "web config file {file}: tls_server_config is gone; allowed: with TLS as it was started, or a restart"
        )
    );
    assert_eq!(
        reload(ENCRYPTED),
        format!(
            "web config file {file}: basic_auth_users are gone; allowed: at least one, or a restart"
        )
    );
    assert_eq!(
        reload("tls_server_config: {cert_file: gone.crt, key_file: server.key}"),
        format!(
            "web config file {file}:1: tls_server_config.cert_file: {}: cannot be read: No such file or directory (os error 2)",
            secured.folder.0.join("gone.crt").display()
        )
    );
    let strict = |policy: &str| format!("tls_server_config: {{SERVER, {policy}}}");
    for (policy, next, expected) in [
        (
            "CLIENT_CA, client_auth_type: RequireAndVerifyClientCert",
            "CLIENT_CA, client_auth_type: VerifyClientCertIfGiven",
            "client_auth_type has become VerifyClientCertIfGiven; allowed: RequireAndVerifyClientCert as it was, a stricter one, or a restart",
        ),
        (
            "CLIENT_CA, client_auth_type: RequireAndVerifyClientCert",
            "client_auth_type: RequireAnyClientCert",
            "client_auth_type has become RequireAnyClientCert; allowed: RequireAndVerifyClientCert as it was, a stricter one, or a restart",
        ),
        (
            "client_auth_type: RequireAnyClientCert",
            "client_auth_type: NoClientCert",
            "client_auth_type has become NoClientCert; allowed: RequireAnyClientCert as it was, a stricter one, or a restart",
        ),
        (
            "CLIENT_CA, client_auth_type: RequireAndVerifyClientCert, client_allowed_sans: [a]",
            "CLIENT_CA, client_auth_type: RequireAndVerifyClientCert",
            "client_allowed_sans are gone; allowed: a list of them, or a restart",
        ),
    ] {
        let secured = Secured::start(&strict(policy));
        secured.write(&strict(next));
        assert_eq!(
            secured.web.reload().unwrap_err().to_string(),
            format!("web config file {}: {expected}", secured.file.display())
        );
        // The other way round is stricter.
        let looser = Secured::start(&strict(next));
        looser.write(&strict(policy));
        assert_eq!(looser.web.reload(), Ok(()));
    }
    let plain = Secured::start("");
    plain.folder.write("web.yml", &expanded(ENCRYPTED));
    assert_eq!(
        plain.web.reload().unwrap_err().to_string(),
        format!(
            "web config file {}: tls_server_config has come; allowed: without TLS as it was started, or a restart",
            plain.file.display()
        )
    );
}

#[test]
fn certificates_are_read_anew_when_a_link_is_swapped() {
    let folder = Folder::new();
    let (old, new) = (Authority::new(), Authority::new());
    // As Kubernetes lays out a secret.
    for (name, authority) in [("..1", &old), ("..2", &new)] {
        let Identity { certificate, key } = authority.identity("sentry.example");
        fs::create_dir(folder.0.join(name)).unwrap();
        fs::write(folder.0.join(name).join("tls.crt"), certificate).unwrap();
        fs::write(folder.0.join(name).join("tls.key"), key).unwrap();
    }
    let link = |to: &str| {
        std::os::unix::fs::symlink(to, folder.0.join("new")).unwrap();
        fs::rename(folder.0.join("new"), folder.0.join("..data")).unwrap();
    };
    link("..1");
    for name in ["tls.crt", "tls.key"] {
        std::os::unix::fs::symlink(format!("..data/{name}"), folder.0.join(name)).unwrap();
    }
    let file = folder.write(
        "web.yml",
        "tls_server_config: {cert_file: tls.crt, key_file: tls.key}",
    );
    let stats = Arc::new(HttpStats::default());
    let web = WebConfig::load_checked_every(&file, Arc::clone(&stats), Duration::ZERO).unwrap();
    let server = Server::start_with("/metrics", String::new, quick(), stats, Some(Arc::new(web)));
    let trusts =
        |authority: &Authority| ask(server.address, &client_config(authority, None), "").is_ok();
    assert!(trusts(&old) && !trusts(&new));
    let mut kept = Client::over(session(server.address, &client_config(&old, None)));
    assert_eq!(kept.get("/healthz", "").status, 200);
    link("..2");
    assert!(trusts(&new) && !trusts(&old));
    // A connection does not go on with what it began with.
    kept.request("GET", "/healthz", "");
    assert_eq!(kept.drain(), (0, false));
    // Half of a pair is no pair.
    fs::copy(folder.0.join("..1/tls.crt"), folder.0.join("..2/tls.crt")).unwrap();
    assert!(trusts(&new));
    let reads = server.stats.web_config().unwrap();
    assert_eq!(
        (reads.last_was_successful, reads.failures_total),
        (false, 1)
    );
}

#[test]
fn files_that_cannot_be_used_are_one_line() {
    let folder = Folder::new();
    let authority = Authority::new();
    let Identity { certificate, key } = authority.identity("sentry.example");
    folder.write("a.crt", &certificate);
    folder.write("a.key", &key);
    folder.write("b.key", &authority.identity("b").key);
    folder.write("empty", "");
    folder.write("cut", &certificate[..100]);
    folder.write("large", &" ".repeat((1 << 20) + 1));
    let path = |name: &str| folder.0.join(name).display().to_string();
    let file = path("web.yml");
    let load = |text: &str| {
        folder.write("web.yml", text);
        let loaded = WebConfig::load(Path::new(&file), Arc::default());
        loaded
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    let mut failures = String::new();
    for (tls, expected) in [
        ("cert_file: a.crt, key_file: a.key", String::new()),
        (
            "cert_file: a.crt, key_file: b.key",
            format!(
                "{file}:1: tls_server_config.key_file: not the key of the certificate; allowed: the one that it was made with"
            ),
        ),
        (
            "cert_file: empty, key_file: a.key",
            format!(
                "{file}:1: tls_server_config.cert_file: no certificate in it; allowed: certificates in PEM"
            ),
        ),
        (
            "cert_file: cut, key_file: a.key",
            format!(
                "{file}:1: tls_server_config.cert_file: it ends too early; allowed: certificates in PEM"
            ),
        ),
        (
            "cert_file: a.crt, key_file: a.crt",
            format!(
                "{file}:1: tls_server_config.key_file: no private key in it; allowed: a key in PEM, not encrypted"
            ),
        ),
        (
            "cert_file: a.crt, key_file: large",
            format!(
                "{file}:1: tls_server_config.key_file: {}: cannot be read: more than 1048576 bytes",
                path("large")
            ),
        ),
        (
            "cert_file: ., key_file: a.key",
            format!(
                "{file}:1: tls_server_config.cert_file: {}/.: cannot be read: not a file",
                folder.0.display()
            ),
        ),
        (
            "cert_file: a.crt, key_file: a.key, client_auth_type: VerifyClientCertIfGiven, client_ca_file: empty",
            format!(
                "{file}:1: tls_server_config.client_ca_file: no certificate in it; allowed: certificates in PEM"
            ),
        ),
        (
            "cert: \"-----BEGIN CERTIFICATE-----\\nAAAA\\n-----END CERTIFICATE-----\\n\", key_file: a.key",
            format!("{file}:1: tls_server_config.cert: the certificate cannot be used: "),
        ),
        (
            "cert: '-----BEGIN CERTIFICATE-----', key_file: a.key",
            format!(
                "{file}:1: tls_server_config.cert: it ends too early; allowed: certificates in PEM"
            ),
        ),
    ] {
        let error = load(&format!("tls_server_config: {{{tls}}}"));
        let error = error.strip_prefix("web config file ").unwrap_or(&error);
        let is_expected = if expected.ends_with(": ") {
            error.starts_with(&expected)
        } else {
            error == expected
        };
        if !is_expected || error.contains('\n') {
            let _ = writeln!(failures, "{tls}: {error:?} is not {expected:?}");
        }
    }
    assert_eq!(failures, "");
    let missing = WebConfig::load(Path::new("/nonexistent/web.yml"), Arc::default());
    assert_eq!(
        missing.err().unwrap().to_string(),
        "web config file /nonexistent/web.yml: cannot be read: No such file or directory (os error 2)"
    );
}

#[test]
fn files_are_looked_at_once_a_second_at_most() {
    let folder = Folder::new();
    let file = folder.write("web.yml", &user("alice", "a"));
    let web = Arc::new(WebConfig::load(&file, Arc::default()).unwrap());
    folder.write("web.yml", &user("bob", "b"));
    let runtime = crate::expose::runtime().unwrap();
    let before = web.current();
    let start = Instant::now();
    let mut looks = 0;
    while Arc::ptr_eq(&runtime.block_on(web.fresh()), &before) {
        looks += 1;
        thread::sleep(5 * MILLISECOND);
        assert!(start.elapsed() < Duration::from_secs(10));
    }
    assert!(start.elapsed() >= 900 * MILLISECOND, "{looks}");
    assert!(looks > 10, "{looks}");
}
