//! An authority, and a certificate for this machine that it signed.

use crate::{Error, Result};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io;
use std::net::{IpAddr, TcpStream};
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct Identity {
    /// PEM.
    pub(super) authority: String,
    server: Arc<ServerConfig>,
}

impl Identity {
    /// For loopback and this address.
    pub(super) fn new(address: IpAddr) -> Result<Self> {
        let cannot =
            |error: &dyn std::error::Error| Error::Argument(format!("make a certificate: {error}"));
        let make = || -> std::result::Result<_, rcgen::Error> {
            let mut authority = CertificateParams::new(Vec::new())?;
            authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let authority_key = KeyPair::generate()?;
            let authority_pem = authority.self_signed(&authority_key)?.pem();
            let issuer = Issuer::new(authority, authority_key);
            let key = KeyPair::generate()?;
            let names = vec![
                "127.0.0.1".to_owned(),
                "localhost".to_owned(),
                address.to_string(),
            ];
            let certificate = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
            Ok((
                authority_pem,
                certificate.der().clone(),
                key.serialize_der(),
            ))
        };
        let (authority, certificate, key) = make().map_err(|error| cannot(&error))?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key));
        let server = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .map_err(|error| cannot(&error))?;
        Ok(Self {
            authority,
            server: Arc::new(server),
        })
    }

    /// Speaks TLS on a connection. The handshake takes place with the first read.
    pub(super) fn accept(
        &self,
        socket: TcpStream,
    ) -> io::Result<StreamOwned<ServerConnection, TcpStream>> {
        let connection =
            ServerConnection::new(Arc::clone(&self.server)).map_err(io::Error::other)?;
        Ok(StreamOwned::new(connection, socket))
    }
}
