//! The routes: what each path answers.

use std::fmt::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use http::StatusCode;
use http::header::{ACCEPT, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, RETRY_AFTER, VARY};
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;

use super::format::Format;
use super::{Exposed, Parts};
use crate::reload::ReloadError;

/// Scrapes under way at once, from the reading of the metrics until the answer is written. An exposition is the
/// largest thing that the agent holds, and a client decides how long.
pub(super) const MAX_SCRAPES: usize = 2;

/// Below this, gzip costs more memory than it saves traffic.
const COMPRESS_ABOVE_BYTES: u64 = 1024;

/// What an answer hands to the connection at a time.
const FRAME_BYTES: usize = 32 * 1024;

struct Served {
    exposed: Arc<Exposed>,
    scrapes: Arc<Semaphore>,
}

/// The routes over `exposed`.
pub(super) fn router(exposed: Arc<Exposed>) -> Router {
    let compression = CompressionLayer::new()
        .quality(CompressionLevel::Fastest)
        .compress_when(SizeAbove::new(COMPRESS_ABOVE_BYTES));
    Router::new()
        .route("/", get(landing))
        .route("/healthz", get("ok\n"))
        .route("/readyz", get(readyz))
        .route("/-/reload", post(reload).put(reload))
        .route(exposed.telemetry_path.as_str(), get(metrics))
        .fallback(not_found)
        .layer(compression)
        .with_state(Arc::new(Served {
            exposed,
            scrapes: Arc::new(Semaphore::new(MAX_SCRAPES)),
        }))
}

async fn metrics(State(served): State<Arc<Served>>, headers: HeaderMap) -> Response {
    let exposed = &served.exposed;
    let turn = Arc::clone(&served.scrapes).acquire_owned();
    let Ok(Ok(permit)) = tokio::time::timeout(exposed.limits.scrape_wait, turn).await else {
        exposed
            .stats
            .scrapes_refused
            .fetch_add(1, Ordering::Relaxed);
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            [(RETRY_AFTER, "1")],
            format!("{MAX_SCRAPES} scrapes are under way already\n"),
        )
            .into_response();
    };
    let accept = headers.get_all(ACCEPT).into_iter();
    let answer = Format::negotiate(accept.filter_map(|value| value.to_str().ok()));
    let scrape = Arc::clone(&exposed.scrape);
    // The permit travels along: a client that leaves meanwhile must not let a third scrape in.
    let made =
        tokio::task::spawn_blocking(move || Exposition::new(scrape.scrape(answer.format), permit));
    match made.await {
        Ok(exposition) => (
            [
                (CONTENT_TYPE, answer.content_type()),
                (VARY, ACCEPT.to_string()),
            ],
            Body::new(exposition),
        )
            .into_response(),
        Err(error) => {
            tracing::error!(%error, "the scrape failed");
            (StatusCode::INTERNAL_SERVER_ERROR, "the scrape failed\n").into_response()
        }
    }
}

async fn readyz(State(served): State<Arc<Served>>) -> Response {
    match served.exposed.readiness.ready() {
        Ok(text) => format!("{text}\n").into_response(),
        Err(text) => (StatusCode::SERVICE_UNAVAILABLE, format!("{text}\n")).into_response(),
    }
}

async fn reload(State(served): State<Arc<Served>>) -> Response {
    let Some(reload) = &served.exposed.reload else {
        let text = "reloads by request are off; --web.enable-lifecycle switches them on, and SIGHUP does the same\n";
        return (StatusCode::FORBIDDEN, text).into_response();
    };
    let (request, outcome) = oneshot::channel();
    let sent = reload.send(request).await.is_ok();
    let outcome = if sent { outcome.await.ok() } else { None };
    match outcome.unwrap_or(Err(ReloadError::Ending)) {
        Ok(done) => format!("{done}\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn landing(State(served): State<Arc<Served>>) -> Response {
    let exposed = &served.exposed;
    let mut probes = String::new();
    for probe in exposed.readiness.probes() {
        let verdict = escape(&probe.verdict);
        // Writing to a String can't fail.
        let _ = writeln!(
            probes,
            "<tr><td>{}</td><td class=\"{verdict}\">{verdict}</td><td>{}</td><td>{}</td></tr>",
            escape(&probe.name),
            escape(&probe.hook),
            escape(&probe.reason),
        );
    }
    let page = fill(
        include_str!("landing.html"),
        &[
            ("version", env!("CARGO_PKG_VERSION")),
            ("telemetry_path", exposed.telemetry_path.as_str()),
            ("probes", &probes),
        ],
    );
    let policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    ([(CONTENT_SECURITY_POLICY, policy)], Html(page)).into_response()
}

async fn not_found(State(served): State<Arc<Served>>) -> (StatusCode, String) {
    let metrics = served.exposed.telemetry_path.as_str();
    let text = format!("not found; known paths are /, {metrics}, /healthz and /readyz\n");
    (StatusCode::NOT_FOUND, text)
}

/// Puts `values` in the place of each `{{name}}`, in one pass, so that nothing in a value is taken for a name.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut page = String::with_capacity(template.len() + 1024);
    for (index, part) in template.split("{{").enumerate() {
        let text = match part.split_once("}}") {
            Some((name, rest)) if index > 0 => {
                let value = values.iter().find(|(known, _)| *known == name);
                page.push_str(value.map_or("", |(_, value)| value));
                rest
            }
            _ => part,
        };
        page.push_str(text);
    }
    page
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(c),
        }
    }
    escaped
}

/// An exposition on its way to a client, made and handed to the connection a part at a time: several megabytes are
/// never there as a whole. The permit is held exactly while it is being read.
struct Exposition {
    parts: Parts,
    /// What is left of the part being read.
    part: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl Exposition {
    fn new(parts: Parts, permit: OwnedSemaphorePermit) -> Self {
        let mut exposition = Self {
            parts,
            part: Bytes::new(),
            _permit: permit,
        };
        exposition.advance();
        exposition
    }

    /// Goes on to the next part that has something in it.
    fn advance(&mut self) {
        while self.part.is_empty()
            && let Some(part) = self.parts.next()
        {
            self.part = part.into();
        }
    }

    /// Bytes still to come, once that is known.
    fn remaining(&self) -> Option<u64> {
        (self.parts.size_hint() == (0, Some(0))).then_some(self.part.len() as u64)
    }
}

impl hyper::body::Body for Exposition {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if this.part.is_empty() {
            return Poll::Ready(None);
        }
        let length = this.part.len().min(FRAME_BYTES);
        let frame = this.part.split_to(length);
        this.advance();
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.part.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.remaining()
            .map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expose::loopback::{Client, Server, inflate, noise, quick};
    use crate::expose::{ProbeVerdict, Scrape};

    const SCRAPE: &str = "# HELP sentry_runs_total Runs.\n# TYPE sentry_runs_total counter\nsentry_runs_total{cgroup=\"/a\"} 1\n";

    fn server() -> Server {
        Server::start(|| SCRAPE.to_owned(), quick())
    }

    /// Names the format that it is asked for.
    struct Named;

    impl Scrape for Named {
        fn scrape(&self, format: Format) -> Parts {
            Box::new(std::iter::once(format!("{format:?}").into_bytes()))
        }
    }

    #[test]
    fn metrics_in_each_format() {
        let server = Server::serve("/metrics", Arc::new(Named), quick());
        let mut client = Client::connect(server.address);
        for (headers, content_type, body) in [
            ("", "text/plain; version=0.0.4; charset=utf-8", "Prometheus"),
            (
                "Accept: image/png\r\n",
                "text/plain; version=0.0.4; charset=utf-8",
                "Prometheus",
            ),
            (
                "Accept: text/plain;q=0.5\r\nAccept: application/openmetrics-text;version=0.0.1;escaping=dots\r\n",
                "application/openmetrics-text; version=0.0.1; charset=utf-8; escaping=dots",
                "OpenMetrics",
            ),
            (
                "Accept: text/plain;q=0.5\r\nAccept: application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited\r\n",
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited",
                "Protobuf",
            ),
        ] {
            let answer = client.get("/metrics", headers);
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("content-type"), Some(content_type));
            assert_eq!(answer.header("vary"), Some("accept"));
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
            assert_eq!(
                answer.header("content-length"),
                Some(body.len().to_string().as_str())
            );
            assert_eq!(answer.text(), body);
        }
    }

    #[test]
    fn a_large_exposition_comes_out_in_order() {
        let scrape = noise(40 * FRAME_BYTES + 7);
        let expected = scrape.clone();
        let server = Server::start(move || scrape.clone(), quick());
        let mut client = Client::connect(server.address);
        let answer = client.get("/metrics", "");
        assert_eq!(
            answer.header("content-length"),
            Some(expected.len().to_string().as_str())
        );
        assert!(answer.text() == expected);
        let answer = client.get("/metrics", "Accept-Encoding: gzip\r\n");
        assert!(inflate(&answer.body) == expected);
    }

    #[test]
    fn parts_are_one_exposition() {
        struct InParts;
        impl Scrape for InParts {
            fn scrape(&self, _: Format) -> Parts {
                let parts = ["", "a 1\n", "a 2\n", "", "b 3\n", ""];
                Box::new(parts.into_iter().map(Vec::from))
            }
        }
        let server = Server::serve("/metrics", Arc::new(InParts), quick());
        let mut client = Client::connect(server.address);
        for _ in 0..2 {
            let answer = client.get("/metrics", "");
            // How much it will be is not known when it begins.
            assert_eq!(answer.header("content-length"), None);
            assert_eq!(answer.text(), "a 1\na 2\nb 3\n");
        }
    }

    #[test]
    fn gzip_where_the_client_takes_it() {
        let large = "sentry_runs_total{cgroup=\"/a\"} 1\n".repeat(1000);
        let scrape = large.clone();
        let server = Server::start(move || scrape.clone(), quick());
        let mut client = Client::connect(server.address);
        for (accepted, compressed) in [
            ("gzip", true),
            ("br;q=1.0, gzip;q=0.8, *;q=0.1", true),
            ("*", true),
            ("", false),
            ("identity", false),
            ("gzip;q=0", false),
            ("gzip;q=0, identity", false),
            ("br, zstd, deflate", false),
        ] {
            let answer = client.get("/metrics", &format!("Accept-Encoding: {accepted}\r\n"));
            assert_eq!(answer.status, 200);
            assert_eq!(answer.headers("vary"), ["accept", "accept-encoding"]);
            let encoding = answer.header("content-encoding");
            assert_eq!(encoding, compressed.then_some("gzip"), "{accepted}");
            if compressed {
                assert!(answer.body.len() < large.len() / 20);
                assert_eq!(inflate(&answer.body), large);
            } else {
                assert_eq!(answer.text(), large);
            }
        }
        // Too little to be worth it.
        let answer = client.get("/healthz", "Accept-Encoding: gzip\r\n");
        assert_eq!(answer.header("content-encoding"), None);
        assert_eq!(answer.text(), "ok\n");
    }

    #[test]
    fn health_and_readiness() {
        let server = server();
        let mut client = Client::connect(server.address);
        let mut get = |path| {
            let answer = client.get(path, "");
            let kind = answer.header("content-type").map(str::to_owned);
            assert_eq!(kind.as_deref(), Some("text/plain; charset=utf-8"));
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
            (answer.status, answer.text())
        };
        assert_eq!(get("/healthz"), (200, "ok\n".to_owned()));
        assert_eq!(get("/readyz"), (503, "no probe is attached\n".to_owned()));
        *server.ready.lock().unwrap() = Ok("2 of 3 probes are attached".to_owned());
        assert_eq!(
            get("/readyz"),
            (200, "2 of 3 probes are attached\n".to_owned())
        );
        assert_eq!(get("/healthz"), (200, "ok\n".to_owned()));
    }

    #[test]
    fn the_landing_page() {
        let server = server();
        *server.probes.lock().unwrap() = vec![
            ProbeVerdict {
                name: "tcp".to_owned(),
                hook: "tp_btf".to_owned(),
                verdict: "attached".to_owned(),
                reason: String::new(),
            },
            ProbeVerdict {
                name: "disk".to_owned(),
                hook: "raw_tp".to_owned(),
                verdict: "degraded".to_owned(),
                reason: "<script>alert('{{version}}')</script> & \"more\"".to_owned(),
            },
        ];
        let mut client = Client::connect(server.address);
        let answer = client.get("/", "");
        assert_eq!(answer.status, 200);
        assert_eq!(
            answer.header("content-type"),
            Some("text/html; charset=utf-8")
        );
        assert_eq!(
            answer.header("content-security-policy"),
            Some(
                "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            )
        );
        let page = answer.text();
        assert!(page.contains(concat!("Version ", env!("CARGO_PKG_VERSION"), "<")));
        for path in ["/metrics", "/healthz", "/readyz"] {
            assert!(page.contains(&format!("<a href=\"{path}\">{path}</a>")));
        }
        assert!(page.contains(
            "<tr><td>tcp</td><td class=\"attached\">attached</td><td>tp_btf</td><td></td></tr>\n<tr><td>disk</td><td class=\"degraded\">degraded</td><td>raw_tp</td><td>&lt;script&gt;alert(&#39;{{version}}&#39;)&lt;/script&gt; &amp; &quot;more&quot;</td></tr>\n</tbody>"
        ));
        assert!(!page.contains("<script"));
        assert!(
            !page.contains("://"),
            "the page loads nothing from elsewhere"
        );
    }

    #[test]
    fn unknown_paths_name_the_known_ones() {
        let server = server();
        let mut client = Client::connect(server.address);
        for path in [
            "/metric",
            "/metrics/",
            "/healthz/x",
            "/api/v1/probes",
            "//",
            "/%6detrics",
        ] {
            let answer = client.get(path, "");
            assert_eq!(
                (answer.status, answer.text().as_str()),
                (
                    404,
                    "not found; known paths are /, /metrics, /healthz and /readyz\n"
                ),
                "{path}"
            );
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        }
        assert_eq!(client.get("/metrics?x=y", "").status, 200);
    }

    #[test]
    fn reloads_are_off_by_default() {
        let server = server();
        let mut client = Client::connect(server.address);
        for (method, status) in [("POST", 403), ("PUT", 403), ("GET", 405), ("DELETE", 405)] {
            client.request(method, "/-/reload", "");
            let answer = client.answer();
            assert_eq!(answer.status, status, "{method}");
        }
    }

    #[test]
    fn the_telemetry_path_is_configurable() {
        let server = Server::start_at("/a/m", || SCRAPE.to_owned(), quick());
        let mut client = Client::connect(server.address);
        assert_eq!(client.get("/a/m", "").text(), SCRAPE);
        let answer = client.get("/metrics", "");
        assert_eq!(
            answer.text(),
            "not found; known paths are /, /a/m, /healthz and /readyz\n"
        );
        assert!(client.get("/", "").text().contains("<a href=\"/a/m\">"));
    }

    #[test]
    fn only_get_and_head() {
        let server = server();
        let mut client = Client::connect(server.address);
        for path in ["/", "/metrics", "/healthz", "/readyz"] {
            for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"] {
                client.request(method, path, "");
                let answer = client.answer();
                assert_eq!(answer.status, 405, "{method} {path}");
                assert_eq!(answer.header("allow"), Some("GET,HEAD"));
                assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
            }
        }
    }

    #[test]
    fn head_has_the_headers_and_no_body() {
        let server = server();
        let mut client = Client::connect(server.address);
        let length = SCRAPE.len().to_string();
        for (path, length) in [("/metrics", length.as_str()), ("/healthz", "3")] {
            client.request("HEAD", path, "");
            let answer = client.head();
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("content-length"), Some(length));
        }
        // Nothing of a body lies between those answers and the next.
        assert_eq!(client.get("/healthz", "").text(), "ok\n");
    }

    #[test]
    fn fills_in_one_pass() {
        let values = [("a", "{{b}}"), ("b", "2")];
        assert_eq!(fill("{{a}}-{{b}}-{{c}}-}}", &values), "{{b}}-2--}}");
    }
}
