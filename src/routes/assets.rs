//! The files of the page inside Jira: built from `web/`, embedded, named by their content, compressed once.

use std::{
    collections::HashMap,
    io::{self, Write as _},
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use rust_embed::RustEmbed;

use super::cacheable;
use crate::{exchange::typed, reject::Reject};

/// A file's name changes with its content, so what has a name never changes (RFC 8246).
const CACHEABLE: &str = "public, max-age=31536000, immutable";

/// Names of the entries in the bundle, by which the pages know them.
const MANIFEST: &str = "manifest.json";

/// What the pages ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// The page's script.
    PageScript,
    /// The page's style.
    PageStyle,
    /// The script of the popup that comes back from an instance.
    CallbackScript,
    /// The style of pages without the page's script.
    ShellStyle,
}

#[derive(RustEmbed)]
#[folder = "web/dist/"]
struct Dist;

/// What the page is made of, ready to be sent.
pub(super) struct Assets {
    files: HashMap<String, Asset>,
    /// From an entry (`page.js`) to what it is called today (`page-3F2A.js`).
    names: HashMap<String, String>,
}

impl Entry {
    const ALL: [Self; 4] = [
        Self::PageScript,
        Self::PageStyle,
        Self::CallbackScript,
        Self::ShellStyle,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::PageScript => "page.js",
            Self::PageStyle => "page.css",
            Self::CallbackScript => "callback.js",
            Self::ShellStyle => "shell.css",
        }
    }
}

struct Asset {
    content_type: &'static str,
    plain: Bytes,
    gzip: Bytes,
}

impl Assets {
    /// Takes the bundle out of the binary and compresses it.
    pub(super) fn load() -> io::Result<Self> {
        let manifest = Dist::get(MANIFEST).ok_or(io::ErrorKind::NotFound)?;
        let names: HashMap<String, String> = serde_json::from_slice(&manifest.data)?;
        if Entry::ALL
            .iter()
            .any(|entry| !names.contains_key(entry.as_str()))
        {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut files = HashMap::new();
        for name in names.values() {
            let file = Dist::get(name).ok_or(io::ErrorKind::NotFound)?;
            let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
            gzip.write_all(&file.data)?;
            let asset = Asset {
                content_type: if name.ends_with(".css") {
                    "text/css; charset=utf-8"
                } else {
                    "text/javascript; charset=utf-8"
                },
                gzip: gzip.finish()?.into(),
                plain: file.data.into_owned().into(),
            };
            files.insert(name.clone(), asset);
        }
        Ok(Self { files, names })
    }

    /// The file that is this entry today.
    pub(super) fn name(&self, entry: Entry) -> &str {
        self.names.get(entry.as_str()).map_or("", String::as_str)
    }

    /// Answers with a file.
    pub(super) fn serve(
        &self,
        name: &str,
        headers: &HeaderMap,
    ) -> Result<Response<Full<Bytes>>, Reject> {
        let asset = self
            .files
            .get(name)
            .ok_or_else(|| Reject::not_found("such file"))?;
        let compressed = takes_gzip(headers);
        let body = if compressed {
            &asset.gzip
        } else {
            &asset.plain
        };
        let response = typed(StatusCode::OK, asset.content_type, body.clone());
        let mut response = cacheable(CACHEABLE, response)?;
        let headers = response.headers_mut();
        headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        if compressed {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        Ok(response)
    }
}

/// RFC 9110 section 12.5.3, as far as browsers use it: a coding that is named, and not with `q=0`.
fn takes_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| {
            let (name, quality) = coding.split_once(';').unwrap_or((coding, ""));
            let refused = quality
                .trim()
                .strip_prefix("q=")
                .and_then(|quality| quality.parse::<f32>().ok())
                .is_some_and(|quality| quality <= 0.0);
            name.trim().eq_ignore_ascii_case("gzip") && !refused
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a browser loads before the page is there, compressed.
    const INITIAL_LOAD_MAX_BYTES: usize = 60 * 1024;

    #[test]
    fn every_entry_is_there_and_the_first_load_is_small() {
        let assets = Assets::load().expect("assets");
        let size = |entry| {
            let asset = assets.files.get(assets.name(entry)).expect("asset");
            asset.gzip.len()
        };
        let page = size(Entry::PageScript) + size(Entry::PageStyle);
        let popup = size(Entry::CallbackScript) + size(Entry::ShellStyle);
        assert!(page.max(popup) < INITIAL_LOAD_MAX_BYTES, "{page}, {popup}");
    }

    #[test]
    fn gzip_goes_to_who_takes_it() {
        for (value, expected) in [
            ("gzip, deflate, br", true),
            ("br;q=1.0, GZIP;q=0.5", true),
            ("gzip;q=0, br", false),
            ("gzip; q=0.0", false),
            ("br", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
            assert_eq!(takes_gzip(&headers), expected, "{value}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }
}
