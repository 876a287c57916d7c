//! The file's format, which is that of Prometheus' exporter-toolkit: YAML into settings, or one line on what is wrong.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use rustls::crypto::SupportedKxGroup;
use rustls::crypto::ring::cipher_suite as suite;
use rustls::crypto::ring::kx_group;
use rustls::{SupportedCipherSuite, SupportedProtocolVersion, version};

use crate::config::{Node, closest, read_yaml};

/// What bcrypt hashes may cost. Each step doubles it: 16 takes seconds, and the format's 31 takes days.
const BCRYPT_COSTS: std::ops::RangeInclusive<u32> = 4..=16;

const BOOLEANS: &str = "true, false";

/// What a file says, checked but for the files that it names.
#[derive(Debug, Default)]
pub(super) struct Settings {
    pub(super) tls: Option<Tls>,
    /// Of every answer that has none of that name.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// Users with their bcrypt hashes; none lets everybody in.
    pub(super) users: BTreeMap<String, String>,
    pub(super) rate: Option<Rate>,
    /// What is understood and has no effect, each in a line.
    pub(super) notes: Vec<String>,
    /// What keeps out fewer than one may think.
    pub(super) warnings: Vec<String>,
}

/// How often requests are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    pub(super) interval: Duration,
    pub(super) burst: u32,
}

#[derive(Debug)]
pub(super) struct Tls {
    pub(super) certificate: Pem,
    pub(super) key: Pem,
    pub(super) client_ca: Option<Pem>,
    pub(super) client_auth: ClientAuth,
    pub(super) client_allowed_sans: Option<Vec<String>>,
    /// Oldest first; at least one.
    pub(super) versions: Vec<&'static SupportedProtocolVersion>,
    pub(super) cipher_suites: Vec<SupportedCipherSuite>,
    pub(super) groups: Vec<&'static dyn SupportedKxGroup>,
    pub(super) prefer_server_cipher_suites: bool,
}

/// PEM and where it comes from, for errors.
pub(super) struct Pem {
    /// File, line and key.
    pub(super) place: String,
    pub(super) source: PemSource,
}

impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // It may be a key.
        f.debug_tuple("Pem").field(&self.place).finish()
    }
}

pub(super) enum PemSource {
    File(PathBuf),
    Inline(String),
}

/// Go's names of what a client's certificate is asked for and held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientAuth {
    None,
    Request,
    RequireAny,
    VerifyIfGiven,
    RequireAndVerify,
}

impl ClientAuth {
    /// How much it takes to come in at all, the more the stricter.
    pub(super) fn requires(self) -> u8 {
        match self {
            Self::None | Self::Request | Self::VerifyIfGiven => 0,
            Self::RequireAny => 1,
            Self::RequireAndVerify => 2,
        }
    }

    pub(super) fn name(self) -> &'static str {
        let entry = CLIENT_AUTH.iter().find(|(_, kind)| *kind == self);
        entry.map_or("", |(name, _)| name)
    }
}

/// The last is an older name of `RequireAnyClientCert`.
const CLIENT_AUTH: [(&str, ClientAuth); 6] = [
    ("NoClientCert", ClientAuth::None),
    ("RequestClientCert", ClientAuth::Request),
    ("RequireAnyClientCert", ClientAuth::RequireAny),
    ("VerifyClientCertIfGiven", ClientAuth::VerifyIfGiven),
    ("RequireAndVerifyClientCert", ClientAuth::RequireAndVerify),
    ("RequireClientCert", ClientAuth::RequireAny),
];

/// The versions by Go's names; those that are too old to be offered to anybody have nothing.
const VERSIONS: [(&str, Option<&SupportedProtocolVersion>); 4] = [
    ("TLS10", None),
    ("TLS11", None),
    ("TLS12", Some(&version::TLS12)),
    ("TLS13", Some(&version::TLS13)),
];

/// The cipher suites of TLS 1.2 by their names.
const TLS12_SUITES: [(&str, SupportedCipherSuite); 6] = [
    (
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    (
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    ),
    (
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
];

/// Those of TLS 1.3, which cannot be chosen, in Go neither.
const TLS13_SUITES: [(&str, SupportedCipherSuite); 3] = [
    ("TLS_AES_256_GCM_SHA384", suite::TLS13_AES_256_GCM_SHA384),
    ("TLS_AES_128_GCM_SHA256", suite::TLS13_AES_128_GCM_SHA256),
    (
        "TLS_CHACHA20_POLY1305_SHA256",
        suite::TLS13_CHACHA20_POLY1305_SHA256,
    ),
];

/// Those that Go has or had among its good ones besides, and that are not to be had here.
const OTHER_SUITES: [&str; 8] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
];

/// The curves by Go's names; nothing where there is none here.
fn curves() -> [(&'static str, Option<&'static dyn SupportedKxGroup>); 5] {
    [
        ("CurveP256", Some(kx_group::SECP256R1)),
        ("CurveP384", Some(kx_group::SECP384R1)),
        ("CurveP521", None),
        ("X25519", Some(kx_group::X25519)),
        ("X25519MLKEM768", None),
    ]
}

/// The headers that may be set, and to what.
const HEADERS: [(&str, &[&str]); 5] = [
    ("Content-Security-Policy", &[]),
    ("Strict-Transport-Security", &[]),
    ("X-Content-Type-Options", &["nosniff"]),
    ("X-Frame-Options", &["deny", "sameorigin"]),
    ("X-XSS-Protection", &[]),
];

/// Reads the text of the file at `path`, in whose folder relative paths begin.
pub(super) fn parse(path: &Path, text: &str) -> Result<Settings, String> {
    let file = format!("web config file {}", path.display());
    let root = Entry {
        place: file.clone(),
        key: String::new(),
        node: read_yaml(&file, text)?,
    };
    let mut root = root.section(
        &file,
        Some(&[
            "basic_auth_users",
            "http_server_config",
            "rate_limit",
            "tls_server_config",
        ]),
    )?;
    let mut settings = Settings::default();
    let folder = path.parent().unwrap_or(Path::new(""));
    if let Some(entry) = root.remove("tls_server_config") {
        settings.tls = tls(entry, &file, folder, &mut settings)?;
    }
    if let Some(entry) = root.remove("http_server_config") {
        http_server(entry, &file, &mut settings)?;
    }
    if let Some(entry) = root.remove("basic_auth_users") {
        let place = entry.place.clone();
        settings.users = users(entry, &file)?;
        let costs = || settings.users.values().filter_map(|hash| bcrypt_cost(hash));
        if let (Some(low), Some(high)) = (costs().min(), costs().max())
            && low < high
        {
            settings.notes.push(format!(
                "{place}: hashes cost from {low} to {high}: by how long an answer takes, those of a lower cost are found to be users"
            ));
        }
    }
    if let Some(entry) = root.remove("rate_limit") {
        settings.rate = rate(entry, &file)?;
    }
    if settings.tls.is_none() && !settings.users.is_empty() {
        settings.warnings.push(format!(
            "{file}: basic_auth_users without tls_server_config: passwords cross the network in plain text"
        ));
    }
    Ok(settings)
}

/// A key with its value.
struct Entry {
    /// File, line and key, as errors name them.
    place: String,
    /// With those of the sections around it; empty for the whole file.
    key: String,
    node: Node,
}

type Section = BTreeMap<String, Entry>;

impl Entry {
    fn refuse<T>(&self, problem: impl Display) -> Result<T, String> {
        Err(format!("{}: {problem}", self.place))
    }

    fn invalid<T>(&self, value: &str, allowed: impl Display) -> Result<T, String> {
        self.refuse(format!("invalid value '{value}'; allowed: {allowed}"))
    }

    /// The entries of a mapping; only these keys, if any are given.
    fn section(self, file: &str, keys: Option<&[&str]>) -> Result<Section, String> {
        let example = keys.map_or_else(
            || "a line such as 'name: value' for each".to_owned(),
            |keys| keys.join(", "),
        );
        let entries = match self.node {
            Node::Null => return Ok(Section::new()),
            Node::Mapping(entries) => entries,
            Node::Scalar(_) | Node::Sequence(_) => {
                return self.refuse(format!("not a mapping; allowed: {example}"));
            }
        };
        let mut lines = BTreeMap::new();
        let mut section = Section::new();
        for (key, node) in entries {
            let line = key.referenced.line();
            let name = key.value;
            let full = if self.key.is_empty() {
                name.clone()
            } else {
                format!("{}.{name}", self.key)
            };
            let place = format!("{file}:{line}: {full}");
            if keys.is_some_and(|keys| !keys.contains(&name.as_str())) {
                let hint = closest(&name, keys.unwrap_or_default()).map_or_else(
                    || format!("allowed: {example}"),
                    |key| format!("did you mean {key}?"),
                );
                return Err(format!("{place}: unknown key; {hint}"));
            }
            if let Some(first) = lines.insert(name.clone(), line) {
                return Err(format!("{place}: duplicate key, first on line {first}"));
            }
            let entry = Entry {
                place,
                key: full,
                node,
            };
            section.insert(name, entry);
        }
        Ok(section)
    }

    /// One value; as in the toolkit, an empty one is none.
    fn text(&self) -> Result<Option<&str>, String> {
        match &self.node {
            Node::Null => Ok(None),
            Node::Scalar(text) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            Node::Sequence(_) => self.refuse("a list; allowed: one value"),
            Node::Mapping(_) => self.refuse("a mapping; allowed: one value"),
        }
    }

    fn is_empty(&self) -> bool {
        match &self.node {
            Node::Null => true,
            Node::Scalar(text) => text.is_empty(),
            Node::Sequence(items) => items.is_empty(),
            Node::Mapping(entries) => entries.is_empty(),
        }
    }

    fn list(&self) -> Result<Option<Vec<&str>>, String> {
        let items = match &self.node {
            Node::Null => return Ok(None),
            Node::Sequence(items) => items,
            Node::Scalar(_) | Node::Mapping(_) => {
                return self.refuse("not a list; allowed: a list");
            }
        };
        let texts = items.iter().map(|item| match item {
            Node::Scalar(text) => Some(text.as_str()),
            _ => None,
        });
        match texts.collect::<Option<Vec<_>>>() {
            Some(texts) => Ok(Some(texts)),
            None => self.refuse("a list of something else; allowed: a list of values"),
        }
    }

    /// YAML 1.1, which the toolkit reads, has many words for it.
    fn boolean(&self) -> Result<Option<bool>, String> {
        let Some(text) = self.text()? else {
            return Ok(None);
        };
        match text.to_lowercase().as_str() {
            "true" | "yes" | "on" | "y" => Ok(Some(true)),
            "false" | "no" | "off" | "n" => Ok(Some(false)),
            _ => self.invalid(text, BOOLEANS),
        }
    }
}

fn names<T>(of: &[(&'static str, T)]) -> String {
    let names: Vec<&str> = of.iter().map(|(name, _)| *name).collect();
    names.join(", ")
}

fn tls(
    entry: Entry,
    file: &str,
    folder: &Path,
    settings: &mut Settings,
) -> Result<Option<Tls>, String> {
    let Settings {
        notes, warnings, ..
    } = settings;
    let place = entry.place.clone();
    let section = entry.section(
        file,
        Some(&[
            "cert",
            "cert_file",
            "cipher_suites",
            "client_allowed_sans",
            "client_auth_type",
            "client_ca",
            "client_ca_file",
            "curve_preferences",
            "key",
            "key_file",
            "max_version",
            "min_version",
            "prefer_server_cipher_suites",
        ]),
    )?;
    let pem = |name: &str| pem(&section, name, folder);
    let (certificate, key, client_ca) = (pem("cert")?, pem("key")?, pem("client_ca")?);
    let client_auth = client_auth(&section)?;
    let versions = versions(&section, notes)?;
    let (cipher_suites, groups) = (
        cipher_suites(&section, &versions, notes)?,
        groups(&section, notes)?,
    );
    let client_allowed_sans = sans(&section, client_auth.unwrap_or(ClientAuth::None))?;
    let prefers = section.get("prefer_server_cipher_suites");
    let prefers = prefers.map(Entry::boolean).transpose()?.flatten();
    if certificate.is_none() && key.is_none() && client_ca.is_none() && client_auth.is_none() {
        // None of what the toolkit takes for a wish for TLS.
        return match section.values().find(|entry| !entry.is_empty()) {
            None => Ok(None),
            Some(entry) => entry
                .refuse("of no effect without a certificate; allowed: with cert_file and key_file"),
        };
    }
    let missing = |what: &str| {
        Err(format!(
            "{place}: {what} is missing; allowed: {what} or {what}_file"
        ))
    };
    let Some(certificate) = certificate else {
        return missing("cert");
    };
    let Some(key) = key else {
        return missing("key");
    };
    let client_auth = client_auth.unwrap_or(ClientAuth::None);
    let verifies = matches!(
        client_auth,
        ClientAuth::VerifyIfGiven | ClientAuth::RequireAndVerify
    );
    if let (Some(ca), ClientAuth::None) = (&client_ca, client_auth) {
        return Err(format!(
            "{}: no client is asked for a certificate; allowed: with another client_auth_type than NoClientCert",
            ca.place
        ));
    }
    if let (true, None, Some(entry)) = (verifies, &client_ca, section.get("client_auth_type")) {
        return entry
            .refuse("there is nothing to verify with; allowed: with client_ca_file or client_ca");
    }
    if let (Some(ca), false) = (&client_ca, verifies) {
        warnings.push(format!(
            "{}: {} verifies nothing: clients are told of the authority, and a certificate of any other will do",
            ca.place,
            client_auth.name()
        ));
    }
    if let (Some(entry), false) = (
        section
            .get("client_allowed_sans")
            .filter(|_| client_allowed_sans.is_some()),
        verifies,
    ) {
        warnings.push(format!(
            "{}: {} verifies nothing: anybody can make a certificate with these names",
            entry.place,
            client_auth.name()
        ));
    }
    Ok(Some(Tls {
        certificate,
        key,
        client_ca,
        client_auth,
        client_allowed_sans,
        versions,
        cipher_suites,
        groups,
        prefer_server_cipher_suites: prefers.unwrap_or(true),
    }))
}

/// PEM that is given inline, or by the name of a file.
fn pem(section: &Section, name: &str, folder: &Path) -> Result<Option<Pem>, String> {
    let by_file = format!("{name}_file");
    let text = |name: &str| match section.get(name) {
        Some(entry) => Ok(entry.text()?.map(|text| (entry, text))),
        None => Ok::<_, String>(None),
    };
    Ok(match (text(name)?, text(&by_file)?) {
        (Some((entry, _)), Some(_)) => {
            return entry.refuse(format!("given along with {by_file}; allowed: one of them"));
        }
        (Some((entry, text)), None) => Some(Pem {
            place: entry.place.clone(),
            source: PemSource::Inline(text.to_owned()),
        }),
        (None, Some((entry, path)))
            if path.contains('\n') || path.trim_start().starts_with("-----BEGIN") =>
        {
            // Not shown: it may be a key.
            return entry.refuse(format!(
                "PEM itself; allowed: a file's name, or PEM in {name}"
            ));
        }
        (None, Some((entry, path))) => Some(Pem {
            place: entry.place.clone(),
            source: PemSource::File(folder.join(path)),
        }),
        (None, None) => None,
    })
}

fn client_auth(section: &Section) -> Result<Option<ClientAuth>, String> {
    let Some(entry) = section.get("client_auth_type") else {
        return Ok(None);
    };
    let Some(text) = entry.text()? else {
        return Ok(None);
    };
    match CLIENT_AUTH.iter().find(|(name, _)| *name == text) {
        Some((_, kind)) => Ok(Some(*kind)),
        None => entry.invalid(text, names(&CLIENT_AUTH[..5])),
    }
}

fn sans(section: &Section, client_auth: ClientAuth) -> Result<Option<Vec<String>>, String> {
    let Some(entry) = section.get("client_allowed_sans") else {
        return Ok(None);
    };
    let Some(sans) = entry.list()? else {
        return Ok(None);
    };
    // Others let clients in that show no certificate, and so no name.
    if !matches!(
        client_auth,
        ClientAuth::RequireAny | ClientAuth::RequireAndVerify
    ) {
        return entry.refuse(
            "of no effect; allowed: with client_auth_type RequireAndVerifyClientCert or RequireAnyClientCert",
        );
    }
    Ok(Some(sans.into_iter().map(str::to_owned).collect()))
}

fn versions(
    section: &Section,
    notes: &mut Vec<String>,
) -> Result<Vec<&'static SupportedProtocolVersion>, String> {
    let index = |key: &str| {
        let Some(entry) = section.get(key) else {
            return Ok(None);
        };
        let Some(text) = entry.text()? else {
            return Ok(None);
        };
        match VERSIONS.iter().position(|(name, _)| *name == text) {
            Some(index) => Ok(Some((index, entry))),
            None => entry.invalid(text, names(&VERSIONS)),
        }
    };
    let last = VERSIONS.len() - 1;
    let min = index("min_version")?;
    let max = index("max_version")?;
    if let Some((index, entry)) = max
        && VERSIONS[index].1.is_none()
    {
        return entry.invalid(VERSIONS[index].0, names(&VERSIONS[2..]));
    }
    let highest = max.map_or(last, |(index, _)| index);
    // What the toolkit has for it, too.
    let mut lowest = 2;
    if let Some((index, entry)) = min {
        if index > highest {
            return entry.invalid(
                VERSIONS[index].0,
                format!("none above max_version, {}", VERSIONS[highest].0),
            );
        }
        if VERSIONS[index].1.is_none() {
            let name = VERSIONS[index].0;
            notes.push(format!(
                "{}: {name} is taken for TLS12, the oldest there is",
                entry.place
            ));
        }
        lowest = index;
    }
    Ok(VERSIONS[lowest..=highest]
        .iter()
        .filter_map(|(_, version)| *version)
        .collect())
}

fn cipher_suites(
    section: &Section,
    versions: &[&'static SupportedProtocolVersion],
    notes: &mut Vec<String>,
) -> Result<Vec<SupportedCipherSuite>, String> {
    let tls13 = TLS13_SUITES.iter().map(|(_, suite)| *suite);
    let entry = section.get("cipher_suites");
    let wanted = entry.map(Entry::list).transpose()?.flatten();
    let (Some(entry), Some(wanted)) = (entry, wanted.filter(|wanted| !wanted.is_empty())) else {
        // Stronger ones first.
        let tls12 = [1, 0, 2, 4, 3, 5].map(|index| TLS12_SUITES[index].1);
        return Ok(tls13.chain(tls12).collect());
    };
    let mut chosen: Vec<SupportedCipherSuite> = Vec::new();
    let mut left_out = Vec::new();
    for name in wanted {
        if let Some((_, suite)) = TLS12_SUITES.iter().find(|(known, _)| *known == name) {
            chosen.push(*suite);
        } else if OTHER_SUITES.contains(&name) {
            left_out.push(name);
        } else if !TLS13_SUITES.iter().any(|(known, _)| *known == name) {
            let all = format!("{}, {}", names(&TLS12_SUITES), names(&TLS13_SUITES));
            return entry.invalid(name, all);
        }
    }
    if chosen.is_empty() && versions == [&version::TLS12] {
        return entry.refuse(format!(
            "none of them can be used with TLS 1.2; allowed: {}",
            names(&TLS12_SUITES)
        ));
    }
    if !left_out.is_empty() {
        notes.push(format!(
            "{}: left out, since there are none here: {}",
            entry.place,
            left_out.join(", ")
        ));
    }
    Ok(tls13.chain(chosen).collect())
}

fn groups(
    section: &Section,
    notes: &mut Vec<String>,
) -> Result<Vec<&'static dyn SupportedKxGroup>, String> {
    let all = curves();
    let entry = section.get("curve_preferences");
    let wanted = entry.map(Entry::list).transpose()?.flatten();
    let (Some(entry), Some(wanted)) = (entry, wanted.filter(|wanted| !wanted.is_empty())) else {
        return Ok(vec![
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
        ]);
    };
    let usable: Vec<_> = all
        .iter()
        .filter(|(_, group)| group.is_some())
        .copied()
        .collect();
    let mut chosen = Vec::new();
    let mut left_out = Vec::new();
    for name in wanted {
        match all.iter().find(|(known, _)| *known == name) {
            Some((_, Some(group))) => chosen.push(*group),
            Some((name, None)) => left_out.push(*name),
            None => return entry.invalid(name, names(&usable)),
        }
    }
    if chosen.is_empty() {
        return entry.refuse(format!(
            "none of them is to be had; allowed: {}",
            names(&usable)
        ));
    }
    if !left_out.is_empty() {
        notes.push(format!(
            "{}: left out, since there are none here: {}",
            entry.place,
            left_out.join(", ")
        ));
    }
    Ok(chosen)
}

fn http_server(entry: Entry, file: &str, settings: &mut Settings) -> Result<(), String> {
    let mut section = entry.section(file, Some(&["headers", "http2"]))?;
    if let Some(entry) = section.get("http2")
        && entry.boolean()? == Some(true)
    {
        settings.notes.push(format!(
            "{}: of no effect, since only HTTP/1.1 is served, which every client of HTTP/2 speaks as well",
            entry.place
        ));
    }
    let Some(headers) = section.remove("headers") else {
        return Ok(());
    };
    let known: Vec<&str> = HEADERS.iter().map(|(name, _)| *name).collect();
    for (name, entry) in headers.section(file, Some(&known))? {
        let Some(value) = entry.text()? else {
            continue;
        };
        let allowed = HEADERS.iter().find(|(known, _)| *known == name);
        let allowed = allowed.map_or(&[][..], |(_, allowed)| allowed);
        if !allowed.is_empty() && !allowed.contains(&value) {
            return entry.invalid(value, allowed.join(", "));
        }
        let (Ok(name), Ok(value)) = (name.parse(), value.parse()) else {
            return entry.invalid(value, "visible characters of ASCII, in one line");
        };
        settings.headers.push((name, value));
    }
    Ok(())
}

fn users(entry: Entry, file: &str) -> Result<BTreeMap<String, String>, String> {
    let mut users = BTreeMap::new();
    for (user, entry) in entry.section(file, None)? {
        if user.is_empty() || user.contains(':') {
            // A colon ends the name where a client sends it.
            return entry.refuse("no name that a client could send; allowed: one without a colon");
        }
        let hash = entry.text()?.unwrap_or_default();
        if !bcrypt_cost(hash).is_some_and(|cost| BCRYPT_COSTS.contains(&cost)) {
            // Not shown: it may be a password.
            let (low, high) = (BCRYPT_COSTS.start(), BCRYPT_COSTS.end());
            return entry.refuse(format!(
                "not a hash of bcrypt of a cost from {low} to {high}; allowed: what `htpasswd -nBC 10 {user}` prints behind the colon"
            ));
        }
        users.insert(user, hash.to_owned());
    }
    Ok(users)
}

/// The cost of a hash such as `$2y$10$` with 53 characters behind, if passwords can be held to it. `$2x$` marks those of
/// a program that took some letters for others.
pub(super) fn bcrypt_cost(hash: &str) -> Option<u32> {
    let parts: bcrypt::HashParts = hash.parse().ok()?;
    (!hash.starts_with("$2x$")).then(|| parts.get_cost())
}

fn rate(entry: Entry, file: &str) -> Result<Option<Rate>, String> {
    let section = entry.section(file, Some(&["burst", "interval"]))?;
    let Some(entry) = section.get("interval") else {
        return match section.get("burst") {
            Some(entry) => entry.refuse("of no effect; allowed: with interval"),
            None => Ok(None),
        };
    };
    let Some(text) = entry.text()? else {
        return Ok(None);
    };
    let Some(interval) = duration(text) else {
        return entry.invalid(text, "a duration such as 1s, 100ms or 1m30s, up to 1h");
    };
    if interval.is_zero() {
        return Ok(None);
    }
    let allowed = "a number from 1 to 1000000";
    let Some(burst) = section.get("burst") else {
        return entry.refuse(format!(
            "burst is missing, and no request would be answered; allowed: {allowed}"
        ));
    };
    let text = burst.text()?.unwrap_or_default();
    match text.parse() {
        Ok(number @ 1..=1_000_000) => Ok(Some(Rate {
            interval,
            burst: number,
        })),
        _ => burst.invalid(text, allowed),
    }
}

/// As Go writes them, without a sign: `1m30s`, `1.5s`, and `0`.
fn duration(text: &str) -> Option<Duration> {
    const LONGEST: Duration = Duration::from_secs(60 * 60);
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut sum = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        rest = &rest[end..];
        sum = sum.checked_add(Duration::try_from_secs_f64(number * unit).ok()?)?;
    }
    (!text.is_empty() && sum <= LONGEST).then_some(sum)
}
