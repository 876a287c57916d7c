//! The routes: what each path answers.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use http::StatusCode;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, RETRY_AFTER, VARY};
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;

use super::format::Format;
use super::{Exposed, Parts, View, page};
use crate::reload::ReloadError;
use crate::views::who::Id;

/// Scrapes under way at once, from the reading of the metrics until the answer is written. An exposition is the
/// largest thing that the agent holds, and a client decides how long.
pub(super) const MAX_SCRAPES: usize = 2;

/// Answers of `/api` that are made at once: each is as large as it gets when it is done, and is then in memory.
pub(super) const MAX_VIEWS: usize = 1;

/// Below this, gzip costs more memory than it saves traffic.
const COMPRESS_ABOVE_BYTES: u64 = 1024;

/// What an answer hands to the connection at a time.
const FRAME_BYTES: usize = 32 * 1024;

struct Served {
    exposed: Arc<Exposed>,
    scrapes: Arc<Semaphore>,
    views: Arc<Semaphore>,
}

/// The routes over `exposed`.
pub(super) fn router(exposed: Arc<Exposed>) -> Router {
    let compression = CompressionLayer::new()
        .quality(CompressionLevel::Fastest)
        .compress_when(SizeAbove::new(COMPRESS_ABOVE_BYTES));
    Router::new()
        .route("/", get(index))
        .route("/-/page/{file}", get(file))
        .route("/api/v1/status", get(status))
        .route("/api/v1/workloads", get(workloads))
        .route("/api/v1/events", get(events))
        .route("/api/v1/history", get(history))
        .route("/healthz", get("ok\n"))
        .route("/readyz", get(readyz))
        .route("/-/reload", post(reload).put(reload))
        .route(exposed.telemetry_path.as_str(), get(metrics))
        .fallback(not_found)
        .layer(compression)
        .with_state(Arc::new(Served {
            exposed,
            scrapes: Arc::new(Semaphore::new(MAX_SCRAPES)),
            views: Arc::new(Semaphore::new(MAX_VIEWS)),
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

async fn index(State(served): State<Arc<Served>>) -> Response {
    let exposed = &served.exposed;
    page::index(exposed.telemetry_path.as_str(), &exposed.readiness.probes())
}

async fn file(
    served: State<Arc<Served>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    match page::file(&name) {
        Some(file) => file.response(&headers),
        None => not_found(served).await.into_response(),
    }
}

async fn status(State(served): State<Arc<Served>>) -> Response {
    view(&served, |views| views.status()).await
}

async fn workloads(State(served): State<Arc<Served>>) -> Response {
    view(&served, |views| views.workloads()).await
}

async fn events(State(served): State<Arc<Served>>) -> Response {
    view(&served, |views| views.events()).await
}

/// `since=N` and `workload=ID`, both as `/api/v1` gave them.
async fn history(State(served): State<Arc<Served>>, RawQuery(query): RawQuery) -> Response {
    let (mut since, mut workload) = (0, None);
    for (name, value) in query.iter().flat_map(|query| pairs(query)) {
        let known = match name {
            "since" => value.parse().map(|step| since = step).is_ok(),
            "workload" => Id::parse(value).map(|id| workload = Some(id)).is_some(),
            _ => false,
        };
        if !known {
            let text = "allowed are since=STEP, a whole number, and workload=ID, sixteen hexadecimal digits\n";
            return (StatusCode::BAD_REQUEST, text).into_response();
        }
    }
    view(&served, move |views| views.history(since, workload)).await
}

fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    let parts = query.split('&').filter(|part| !part.is_empty());
    parts.map(|part| part.split_once('=').unwrap_or((part, "")))
}

/// Makes an answer of `/api` beside the server.
async fn view(
    served: &Served,
    look: impl FnOnce(&dyn View) -> Vec<u8> + Send + 'static,
) -> Response {
    let exposed = &served.exposed;
    let turn = Arc::clone(&served.views).acquire_owned();
    let Ok(Ok(permit)) = tokio::time::timeout(exposed.limits.scrape_wait, turn).await else {
        let text = "too many ask at once\n";
        return (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "1")], text).into_response();
    };
    let views = Arc::clone(&exposed.views);
    let made = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        look(&*views)
    });
    match made.await {
        Ok(json) => {
            let headers = [
                (CONTENT_TYPE, "application/json"),
                (CACHE_CONTROL, "no-store"),
            ];
            (headers, json).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "a view failed");
            (StatusCode::INTERNAL_SERVER_ERROR, "the view failed\n").into_response()
        }
    }
}

async fn not_found(State(served): State<Arc<Served>>) -> (StatusCode, String) {
    let metrics = served.exposed.telemetry_path.as_str();
    let text = format!(
        "not found; known paths are /, {metrics}, /healthz, /readyz, /api/v1/status, /api/v1/workloads, /api/v1/events and /api/v1/history\n"
    );
    (StatusCode::NOT_FOUND, text)
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
    fn the_page() {
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
        for (header, value) in [
            ("content-type", "text/html; charset=utf-8"),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            (
                "content-security-policy",
                "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            ),
        ] {
            assert_eq!(answer.header(header), Some(value));
        }
        let page = answer.text();
        assert!(page.contains(concat!("Sentry ", env!("CARGO_PKG_VERSION"))));
        for path in ["metrics", "healthz", "readyz"] {
            assert!(page.contains(&format!("<a href=\"{path}\">/{path}</a>")));
        }
        assert!(page.contains(
            "<tr><th scope=\"row\">tcp</th><td><span class=\"verdict attached\">attached</span></td><td>tp_btf</td><td></td></tr>\n<tr><th scope=\"row\">disk</th><td><span class=\"verdict degraded\">degraded</span></td><td>raw_tp</td><td>&lt;script&gt;alert(&#39;{{version}}&#39;)&lt;/script&gt; &amp; &quot;more&quot;</td></tr>\n</tbody>"
        ));
        // No script but from files of its own.
        assert_eq!(
            page.matches("<script").count(),
            page.matches("<script src=\"-/page/").count()
                + page
                    .matches("<script type=\"module\" src=\"-/page/")
                    .count()
        );
        for inline in [" style=", "<style", " onload=", " onclick="] {
            assert!(!page.contains(inline), "{inline}");
        }
    }

    #[test]
    fn files_of_the_page() {
        let server = server();
        let mut client = Client::connect(server.address);
        let plain = client.get("/-/page/main.js", "");
        assert_eq!(plain.status, 200);
        assert_eq!(
            plain.header("content-type"),
            Some("text/javascript; charset=utf-8")
        );
        assert_eq!(plain.header("content-encoding"), None);
        assert_eq!(plain.header("cache-control"), Some("no-cache"));
        let packed = client.get("/-/page/main.js", "Accept-Encoding: br, gzip\r\n");
        assert_eq!(packed.header("content-encoding"), Some("gzip"));
        assert_eq!(inflate(&packed.body), plain.text());
        let tag = plain.header("etag").unwrap().to_owned();
        let again = client.get("/-/page/main.js", &format!("If-None-Match: {tag}\r\n"));
        assert_eq!((again.status, again.body.len()), (304, 0));
        let style = client.get("/-/page/page.css", "");
        assert_eq!(
            style.header("content-type"),
            Some("text/css; charset=utf-8")
        );
        for other in ["index.html", "..%2fpage.css", "x"] {
            let answer = client.get(&format!("/-/page/{other}"), "");
            assert_eq!(answer.status, 404, "{other}");
        }
    }

    #[test]
    fn views_are_json() {
        let server = server();
        let mut client = Client::connect(server.address);
        for (path, body) in [
            ("/api/v1/status", "{\"status\":0}".to_owned()),
            ("/api/v1/workloads", "{\"workloads\":0}".to_owned()),
            ("/api/v1/events", "{\"events\":0}".to_owned()),
            (
                "/api/v1/history",
                "{\"since\":0,\"workload\":null}".to_owned(),
            ),
            (
                "/api/v1/history?since=7&workload=00000000000000ff",
                "{\"since\":7,\"workload\":\"00000000000000ff\"}".to_owned(),
            ),
        ] {
            let answer = client.get(path, "");
            assert_eq!(answer.status, 200, "{path}");
            assert_eq!(answer.header("content-type"), Some("application/json"));
            assert_eq!(answer.header("cache-control"), Some("no-store"));
            assert_eq!(answer.text(), body);
        }
        for query in ["since=-1", "since=x", "workload=1", "limit=3", "since"] {
            let answer = client.get(&format!("/api/v1/history?{query}"), "");
            assert_eq!(
                (answer.status, answer.text().as_str()),
                (
                    400,
                    "allowed are since=STEP, a whole number, and workload=ID, sixteen hexadecimal digits\n"
                ),
                "{query}"
            );
        }
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
            "/api/v2/status",
            "//",
            "/%6detrics",
        ] {
            let answer = client.get(path, "");
            assert_eq!(
                (answer.status, answer.text().as_str()),
                (
                    404,
                    "not found; known paths are /, /metrics, /healthz, /readyz, /api/v1/status, /api/v1/workloads, /api/v1/events and /api/v1/history\n"
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
            "not found; known paths are /, /a/m, /healthz, /readyz, /api/v1/status, /api/v1/workloads, /api/v1/events and /api/v1/history\n"
        );
        assert!(
            client
                .get("/", "")
                .text()
                .contains("<a href=\"a/m\">/a/m</a>")
        );
    }

    #[test]
    fn only_get_and_head() {
        let server = server();
        let mut client = Client::connect(server.address);
        for path in [
            "/",
            "/metrics",
            "/healthz",
            "/readyz",
            "/api/v1/status",
            "/-/page/main.js",
        ] {
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
}
