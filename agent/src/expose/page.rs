//! The page at `/`, and its files, which are part of the program.

use std::{fmt::Write as _, io::Read};

use axum::response::{Html, IntoResponse, Response};
use flate2::read::GzDecoder;
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG,
    HeaderMap, IF_NONE_MATCH, REFERRER_POLICY, VARY,
};
use http::{HeaderValue, StatusCode};

use super::ProbeVerdict;

include!(concat!(env!("OUT_DIR"), "/page.rs"));

const INDEX: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../page/src/index.html"
));

/// Nothing comes from elsewhere, nothing is sent elsewhere, and what a label says is never run.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const NO_REFERRER: HeaderValue = HeaderValue::from_static("no-referrer");

/// A file beside the page.
pub(super) struct File {
    name: &'static str,
    tag: &'static str,
    /// Gzipped.
    packed: &'static [u8],
}

/// The file of this name.
pub(super) fn file(name: &str) -> Option<&'static File> {
    FILES.iter().find(|file| file.name == name)
}

impl File {
    /// The whole file, or that it is as the client has it.
    pub(super) fn response(&self, asked: &HeaderMap) -> Response {
        let lists = |name, wanted: &str| {
            let values = asked.get_all(name).into_iter();
            let values = values.filter_map(|value| value.to_str().ok());
            values
                .flat_map(|value| value.split(','))
                .any(|value| value.trim().trim_start_matches("W/") == wanted)
        };
        let headers = [
            (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (ETAG, HeaderValue::from_static(self.tag)),
            (VARY, HeaderValue::from(ACCEPT_ENCODING)),
            (REFERRER_POLICY, NO_REFERRER),
        ];
        if lists(IF_NONE_MATCH, self.tag) {
            return (StatusCode::NOT_MODIFIED, headers).into_response();
        }
        let kind = match self.name.rsplit_once('.') {
            Some((_, "css")) => "text/css; charset=utf-8",
            Some((_, "js")) => "text/javascript; charset=utf-8",
            _ => "text/plain; charset=utf-8",
        };
        let kind = [(CONTENT_TYPE, HeaderValue::from_static(kind))];
        if lists(ACCEPT_ENCODING, "gzip") {
            let encoding = [(CONTENT_ENCODING, HeaderValue::from_static("gzip"))];
            return (headers, kind, encoding, self.packed).into_response();
        }
        (headers, kind, self.text()).into_response()
    }

    fn text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        // It was packed by the build.
        let _ = GzDecoder::new(self.packed).read_to_end(&mut text);
        text
    }
}

/// The page with what it says without scripts, too.
pub(super) fn index(telemetry_path: &str, verdicts: &[ProbeVerdict]) -> Response {
    let mut probes = String::new();
    for probe in verdicts {
        let verdict = escape(&probe.verdict);
        // Writing to a String can't fail.
        let _ = writeln!(
            probes,
            "<tr><th scope=\"row\">{}</th><td><span class=\"verdict {verdict}\">{verdict}</span></td><td>{}</td><td>{}</td></tr>",
            escape(&probe.name),
            escape(&probe.hook),
            escape(&probe.reason),
        );
    }
    let charts = if HAS_CHARTS {
        "<link rel=\"license\" href=\"-/page/uplot-license.txt\">\n<link rel=\"stylesheet\" href=\"-/page/uplot.css\">\n<script src=\"-/page/uplot.js\" defer></script>"
    } else {
        ""
    };
    let page = fill(
        INDEX,
        &[
            ("version", env!("CARGO_PKG_VERSION")),
            // From here, whatever stands before it in front of a proxy.
            ("telemetry_path", telemetry_path.trim_start_matches('/')),
            ("charts", charts),
            ("probes", &probes),
        ],
    );
    let headers = [
        (CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (REFERRER_POLICY, NO_REFERRER),
    ];
    (headers, Html(page)).into_response()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_in_one_pass() {
        let values = [("a", "{{b}}"), ("b", "2")];
        assert_eq!(fill("{{a}}-{{b}}-{{c}}-}}", &values), "{{b}}-2--}}");
    }

    #[test]
    fn all_of_it_is_small() {
        let packed: usize = FILES.iter().map(|file| file.packed.len()).sum();
        assert!(packed + INDEX.len() < 60_000, "{packed}");
        // And whole without npm: what it brings is additional.
        for name in ["main.js", "page.css"] {
            assert!(file(name).is_some(), "{name}");
        }
        assert_eq!(file("uplot.js").is_some(), HAS_CHARTS);
        assert!(file("index.html").is_none());
    }

    #[test]
    fn nothing_is_asked_of_elsewhere() {
        for file in FILES.iter().filter(|file| !file.name.starts_with("uplot")) {
            let text = String::from_utf8(file.text()).unwrap();
            let namespace = "http://www.w3.org/2000/svg";
            assert!(
                !text.replace(namespace, "").contains("://"),
                "{}",
                file.name
            );
            for forbidden in ["innerHTML", "outerHTML", "insertAdjacentHTML", "eval("] {
                assert!(!text.contains(forbidden), "{}: {forbidden}", file.name);
            }
        }
    }
}
