//! The server's side of TLS, by rustls: from settings to a configuration, and which certificates of clients will do.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, InconsistentKeys,
    RootCertStore, ServerConfig, SignatureScheme,
};

use super::format::{ClientAuth, Pem, Tls};

/// Builds it; `read` gives the bytes of PEM. Errors are one line.
pub(super) fn build(
    tls: &Tls,
    mut read: impl FnMut(&Pem) -> Result<Vec<u8>, String>,
) -> Result<Arc<ServerConfig>, String> {
    let provider = Arc::new(CryptoProvider {
        cipher_suites: tls.cipher_suites.clone(),
        kx_groups: tls.groups.clone(),
        ..ring::default_provider()
    });
    let certificates = certificates(&tls.certificate, &read(&tls.certificate)?)?;
    let key = PrivateKeyDer::from_pem_slice(&read(&tls.key)?).map_err(|error| {
        let place = &tls.key.place;
        format!(
            "{place}: {}; allowed: a key in PEM, not encrypted",
            not_pem(&error, "private key")
        )
    })?;
    let verifier = verifier(tls, &provider, read)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&tls.versions)
        .map_err(|error| format!("{}: {error}", tls.certificate.place))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates, key)
        .map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => format!(
                "{}: not the key of the certificate; allowed: the one that it was made with",
                tls.key.place
            ),
            Error::InvalidCertificate(error) => {
                format!(
                    "{}: the certificate cannot be used: {error}",
                    tls.certificate.place
                )
            }
            error => format!("{}: the key cannot be used: {error}", tls.key.place),
        })?;
    config.ignore_client_order = tls.prefer_server_cipher_suites;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A scraper keeps its connection. Without sessions to go on with, a client cannot come back with a certificate
    // that is not good any more, and nothing is kept for those that are gone.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn certificates(from: &Pem, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let refuse = |error: &pem::Error| {
        format!(
            "{}: {}; allowed: certificates in PEM",
            from.place,
            not_pem(error, "certificate")
        )
    };
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let certificates = certificates.map_err(|error| refuse(&error))?;
    if certificates.is_empty() {
        return Err(refuse(&pem::Error::NoItemsFound));
    }
    Ok(certificates)
}

/// What is wrong with PEM, without what it says.
fn not_pem(error: &pem::Error, what: &str) -> String {
    match error {
        pem::Error::NoItemsFound => format!("no {what} in it"),
        pem::Error::MissingSectionEnd { .. } => "it ends too early".to_owned(),
        _ => "it is damaged".to_owned(),
    }
}

fn verifier(
    tls: &Tls,
    provider: &Arc<CryptoProvider>,
    mut read: impl FnMut(&Pem) -> Result<Vec<u8>, String>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    if let Some(from) = &tls.client_ca {
        for (index, certificate) in certificates(from, &read(from)?)?.into_iter().enumerate() {
            roots.add(certificate).map_err(|error| {
                let number = index + 1;
                format!(
                    "{}: certificate {number} cannot be used: {error}",
                    from.place
                )
            })?;
        }
    }
    let by_authority = |optional: bool| {
        let builder = WebPkiClientVerifier::builder_with_provider(
            Arc::new(roots.clone()),
            Arc::clone(provider),
        );
        let builder = if optional {
            builder.allow_unauthenticated()
        } else {
            builder
        };
        builder.build().map_err(|error| {
            let place = tls.client_ca.as_ref().map(|from| &*from.place);
            format!("{}: {error}", place.unwrap_or(&tls.certificate.place))
        })
    };
    let algorithms = provider.signature_verification_algorithms;
    let any = |mandatory| {
        Arc::new(AnyCertificate {
            mandatory,
            hints: roots.subjects(),
            algorithms,
        })
    };
    let inner: Arc<dyn ClientCertVerifier> = match tls.client_auth {
        ClientAuth::None => return Ok(WebPkiClientVerifier::no_client_auth()),
        ClientAuth::Request => any(false),
        ClientAuth::RequireAny => any(true),
        ClientAuth::VerifyIfGiven => by_authority(true)?,
        ClientAuth::RequireAndVerify => by_authority(false)?,
    };
    Ok(match &tls.client_allowed_sans {
        Some(allowed) => Arc::new(AllowedNames {
            inner,
            allowed: allowed.clone(),
        }),
        None => inner,
    })
}

/// Takes any certificate whose key the client has.
#[derive(Debug)]
struct AnyCertificate {
    mandatory: bool,
    hints: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Takes those that another takes and that have one of these names as an alternative one of their subject.
#[derive(Debug)]
struct AllowedNames {
    inner: Arc<dyn ClientCertVerifier>,
    allowed: Vec<String>,
}

impl ClientCertVerifier for AllowedNames {
    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .inner
            .verify_client_cert(certificate, intermediates, now)?;
        let names = subject_alternative_names(certificate).ok_or(CertificateError::BadEncoding)?;
        if names.iter().any(|name| self.allowed.contains(name)) {
            Ok(verified)
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// `id-ce-subjectAltName`, 2.5.29.17.
const SUBJECT_ALTERNATIVE_NAME: &[u8] = &[0x55, 0x1d, 0x11];

const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;
const OCTET_STRING: u8 = 0x04;
/// `[3]` of the certificate to be signed.
const EXTENSIONS: u8 = 0xa3;

/// Names of hosts, e-mail addresses, URIs, and IP addresses as text (RFC 5280, 4.2.1.6) of a certificate; nothing if it
/// cannot be read.
fn subject_alternative_names(certificate: &[u8]) -> Option<Vec<String>> {
    let (certificate, _) = of(SEQUENCE, certificate)?;
    let (mut fields, _) = of(SEQUENCE, certificate)?;
    let mut names = Vec::new();
    while !fields.is_empty() {
        let (tag, content, rest) = element(fields)?;
        fields = rest;
        if tag != EXTENSIONS {
            continue;
        }
        let (mut extensions, _) = of(SEQUENCE, content)?;
        while !extensions.is_empty() {
            let (extension, rest) = of(SEQUENCE, extensions)?;
            extensions = rest;
            let (identifier, mut rest) = of(OBJECT_IDENTIFIER, extension)?;
            if identifier != SUBJECT_ALTERNATIVE_NAME {
                continue;
            }
            // Whether it is critical may come first.
            let value = loop {
                let (tag, content, next) = element(rest)?;
                if tag == OCTET_STRING {
                    break content;
                }
                rest = next;
            };
            let (mut values, _) = of(SEQUENCE, value)?;
            while !values.is_empty() {
                let (tag, content, rest) = element(values)?;
                values = rest;
                names.extend(general_name(tag, content));
            }
        }
    }
    Some(names)
}

fn general_name(tag: u8, content: &[u8]) -> Option<String> {
    match tag {
        // rfc822Name, dNSName, uniformResourceIdentifier
        0x81 | 0x82 | 0x86 => String::from_utf8(content.to_vec()).ok(),
        // iPAddress
        0x87 => {
            let v4 = <[u8; 4]>::try_from(content).map(std::net::IpAddr::from);
            let v6 = || <[u8; 16]>::try_from(content).map(std::net::IpAddr::from);
            v4.or_else(|_| v6()).map(|address| address.to_string()).ok()
        }
        _ => None,
    }
}

/// The content of the first element of DER, which must have this tag, and what comes behind it.
fn of(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = element(der)?;
    (found == tag).then_some((content, rest))
}

/// Tag and content of the first element of DER, and what comes behind it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, length], rest) = der.split_first_chunk::<2>()?;
    let (length, rest) = if length < 0x80 {
        (usize::from(length), rest)
    } else {
        let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
        if bytes.is_empty() || bytes.len() > 4 {
            return None;
        }
        let length = bytes
            .iter()
            .fold(0, |length, byte| length << 8 | usize::from(*byte));
        (length, rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// Why a connection came to nothing before there was a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandshakeFailure {
    /// The client has no certificate to show.
    NoCertificate,
    /// It shows one that is not valid any more, or not yet.
    CertificateExpired,
    /// It shows one that nobody vouches for who is trusted here.
    CertificateUntrusted,
    /// It shows one without an allowed name.
    CertificateNotAllowed,
    /// It takes the server's certificate for a bad one, or gives up for another reason that it tells.
    RefusedByClient,
    /// It has no version, cipher suite, curve or protocol in common with the server.
    Incompatible,
    /// It does not speak TLS.
    NotTls,
    /// It closed the connection.
    Closed,
    /// It was too slow.
    Timeout,
    Other,
}

impl HandshakeFailure {
    pub(crate) const ALL: [Self; 10] = [
        Self::NoCertificate,
        Self::CertificateExpired,
        Self::CertificateUntrusted,
        Self::CertificateNotAllowed,
        Self::RefusedByClient,
        Self::Incompatible,
        Self::NotTls,
        Self::Closed,
        Self::Timeout,
        Self::Other,
    ];

    /// As metrics have it.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::CertificateExpired => "certificate_expired",
            Self::CertificateUntrusted => "certificate_untrusted",
            Self::CertificateNotAllowed => "certificate_not_allowed",
            Self::RefusedByClient => "refused_by_client",
            Self::Incompatible => "incompatible",
            Self::NotTls => "not_tls",
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::Other => "other",
        }
    }
}

impl From<&std::io::Error> for HandshakeFailure {
    fn from(error: &std::io::Error) -> Self {
        let inner = error.get_ref().and_then(|error| error.downcast_ref());
        match inner {
            None => Self::Closed,
            Some(Error::NoCertificatesPresented) => Self::NoCertificate,
            Some(Error::InvalidCertificate(error)) => match error {
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Self::CertificateExpired,
                CertificateError::ApplicationVerificationFailure => Self::CertificateNotAllowed,
                _ => Self::CertificateUntrusted,
            },
            Some(Error::AlertReceived(_)) => Self::RefusedByClient,
            Some(Error::PeerIncompatible(_) | Error::NoApplicationProtocol) => Self::Incompatible,
            Some(Error::InvalidMessage(_) | Error::InappropriateMessage { .. }) => Self::NotTls,
            Some(_) => Self::Other,
        }
    }
}

impl fmt::Display for HandshakeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, SanType};

    fn names(sans: Vec<SanType>) -> Option<Vec<String>> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = sans;
        let key = KeyPair::generate().unwrap();
        subject_alternative_names(params.self_signed(&key).unwrap().der())
    }

    #[test]
    fn names_of_each_kind_are_found() {
        let found = names(vec![
            SanType::DnsName("prometheus.example".try_into().unwrap()),
            SanType::DnsName("*.example".try_into().unwrap()),
            SanType::Rfc822Name("a@example.org".try_into().unwrap()),
            SanType::URI("spiffe://example.org/prometheus".try_into().unwrap()),
            SanType::IpAddress("192.0.2.1".parse().unwrap()),
            SanType::IpAddress("2001:db8::1".parse().unwrap()),
        ]);
        let expected = [
            "prometheus.example",
            "*.example",
            "a@example.org",
            "spiffe://example.org/prometheus",
            "192.0.2.1",
            "2001:db8::1",
        ];
        assert_eq!(found.unwrap(), expected);
        assert_eq!(names(Vec::new()).unwrap(), [""; 0]);
    }

    #[test]
    fn a_certificate_that_is_cut_or_changed_does_no_harm() {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let der = certificate.der().to_vec();
        for end in 0..der.len() {
            assert_eq!(subject_alternative_names(&der[..end]), None, "{end}");
        }
        for index in 0..der.len() {
            for value in [0, 1, 0x7f, 0x80, 0x84, 0xff] {
                let mut der = der.clone();
                der[index] = value;
                let _ = subject_alternative_names(&der);
            }
        }
    }
}
