//! What must hold for any input, whoever made it up.
//!
//! Each function takes raw bytes and panics where a promise is broken. libFuzzer feeds them (`fuzz_targets`), and so does
//! a test of the relay's own (`tests/relay/fuzz.rs`): the seeds, and variations of them.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, Waker},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use jira_connect_proxy::{
    client::{Client, DialSettings},
    config::Config,
    domain::{
        ClientKey, CloudId, Family, ForgeAppId, ForgeEnvironmentType, ForgeInstallationId,
        ImportId, Installation, JiraApiUrl, JiraSites, Namespace, SharedSecret, event::SiteFacts,
    },
    gitlab::export::{self, DbKeyBase},
    jira::{
        calls, mend, namespace,
        split::{self, Split},
    },
    jwt::{
        InvocationVerifier, KeySet, Target, UnverifiedToken, VerifyError, crypto, qsh::Rule,
        request, token::TOKEN_MAX_BYTES,
    },
    metrics::Metrics,
    store::{BackupFile, Sealer},
};
use ring::{aead, hmac};
use serde::de::IgnoredAny;
use serde_json::{Value, value::RawValue};

/// One property, by the name of its target.
pub type Property = (&'static str, fn(&[u8]));

/// All of them.
pub const ALL: [Property; 10] = [
    ("token", token),
    ("invocation", invocation),
    ("qsh", qsh),
    ("target", target),
    ("ids", ids),
    ("pieces", pieces),
    ("config", config),
    ("records", records),
    ("export", export),
    ("backup", backup),
];

const SECRET: &str = "a-secret-of-somebody-a-secret-of-somebody";
const NOW: i64 = 1_800_000_000;
const APP: &str = "https://relay.example.com/-/jira_connect";

/// A token is taken apart only if it has the shape of one, and believed only if whoever knows the secret signed exactly
/// these claims, and they hold.
pub fn token(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(token) = UnverifiedToken::parse(text) {
        assert!(text.len() <= TOKEN_MAX_BYTES && text.matches('.').count() == 2);
        let header = text.split('.').next().expect("header");
        let header = URL_SAFE_NO_PAD.decode(header).expect("Base64");
        let header: Value = serde_json::from_slice(&header).expect("JSON");
        // A nameless alg or an extension that has to be understood never gets further.
        assert!(header["alg"].is_string() && header["crit"].is_null());
        assert!(
            !believed(&token, "/x"),
            "nobody who knows the secret signed this"
        );
    }
    // The same text as claims, signed: only now it depends on what they say.
    let signed = sign(&format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#),
        URL_SAFE_NO_PAD.encode(text)
    ));
    let Ok(token) = UnverifiedToken::parse(&signed) else {
        return;
    };
    if believed(&token, "/x") {
        let claims: Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(claims["iss"], "tenant");
        assert!(
            claims["exp"]
                .as_i64()
                .is_some_and(|exp| NOW < exp.saturating_add(60))
        );
        assert!(claims["iat"].as_i64().is_some_and(|iat| iat <= NOW + 60));
        assert!(claims["nbf"].as_i64().is_none_or(|nbf| nbf <= NOW + 60));
        let target = Target::parse("/x").expect("target");
        let hash = Rule::JiraVerifies.qsh("GET", &target, "");
        assert_eq!(claims["qsh"], hash.as_str());
        assert!(!believed(&token, "/y"), "it is bound to its address");
        let cut = signed.get(..signed.len() - 1).expect("ASCII");
        assert!(UnverifiedToken::parse(cut).map_or(true, |token| !believed(&token, "/x")));
    }
}

const FORGE_APP: &str = "ari:cloud:ecosystem::app/8db33809-1f32-48bb-8c52-5877dab48107";

/// An invocation token's keys are asked for only if its claims are all that an invocation of the app needs, as of now,
/// and its API address is below the one gateway. Here no keys can be had, so none is believed. Input: the claims.
pub fn invocation(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let header = r#"{"alg":"RS256","kid":"forge/invocation-token/x"}"#;
    let token = format!(
        "{}.{}.c2ln",
        URL_SAFE_NO_PAD.encode(header),
        URL_SAFE_NO_PAD.encode(text)
    );
    let Ok(token) = UnverifiedToken::parse(&token) else {
        return;
    };
    let now = Timestamp::from_second(NOW).expect("time");
    let verdict = {
        let verifying = pin!(forge().verify(&token, now));
        // Nothing to wait for: there is no address to ask.
        verifying.poll(&mut Context::from_waker(Waker::noop()))
    };
    match verdict {
        Poll::Ready(Err(VerifyError::KeySetUnavailable { .. })) => {}
        Poll::Ready(Err(_)) => return,
        Poll::Ready(Ok(_)) | Poll::Pending => panic!("nobody signed this"),
    }
    let claims: Value = serde_json::from_str(text).expect("JSON");
    let aud = &claims["aud"];
    assert!(aud == FORGE_APP || *aud == serde_json::json!([FORGE_APP]));
    assert_eq!(claims["iss"], "forge/invocation-token");
    let time = |name: &str| claims[name].as_i64().expect("whole seconds");
    assert!(NOW < time("exp").saturating_add(60));
    assert!(time("iat").max(time("nbf")) <= NOW + 60);
    assert!(claims["jti"].as_str().is_some_and(|jti| !jti.is_empty()));
    let app = &claims["app"];
    assert_eq!(app["id"], FORGE_APP);
    assert_eq!(app["environment"]["type"], "PRODUCTION");
    let ids = [&app["installationId"], &app["installation"]["id"]];
    let ids: Vec<&str> = ids.into_iter().filter_map(Value::as_str).collect();
    assert!(!ids.is_empty() && ids.iter().all(|id| ForgeInstallationId::parse(id).is_ok()));
    let url = app["apiBaseUrl"].as_str().expect("a URL");
    let cloud_id = url
        .strip_prefix("https://api.atlassian.com/ex/jira/")
        .expect("below the gateway");
    assert!(CloudId::parse(cloud_id.strip_suffix('/').unwrap_or(cloud_id)).is_ok());
}

/// A verifier that can get no keys.
fn forge() -> &'static InvocationVerifier {
    static FORGE: OnceLock<InvocationVerifier> = OnceLock::new();
    FORGE.get_or_init(|| {
        crypto::install();
        let client = Client::new(&DialSettings {
            roots: Arc::new(rustls::RootCertStore::empty()),
            connect_timeout: Duration::from_secs(1),
            allow_private: false,
        });
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        InvocationVerifier::new(
            ForgeAppId::parse(FORGE_APP).expect("app id"),
            vec![ForgeEnvironmentType::Production],
            JiraApiUrl::parse("https://api.atlassian.com").expect("URL"),
            JiraSites::default(),
            KeySet::new("", client, metrics),
        )
    })
}

fn believed(token: &UnverifiedToken, path: &str) -> bool {
    crypto::install();
    let target = Target::parse(path).expect("target");
    let audiences = request::Audiences {
        base_url: APP.to_owned(),
        app_key: "app".to_owned(),
    };
    let now = Timestamp::from_second(NOW).expect("time");
    let find = |client_key: &ClientKey| {
        let facts = SiteFacts {
            base_url: JiraSites::default()
                .parse("https://acme.atlassian.net")
                .expect("site"),
            display_url: None,
            shared_secret: SharedSecret::parse(SECRET).expect("secret"),
        };
        let key = ClientKey::parse("tenant").expect("key");
        let site = Installation::import(key, facts, ImportId::generate(), now);
        (*client_key == site.client_key).then(|| Arc::new(site))
    };
    request::verify(token, "GET", "", &target, &audiences, find, now).is_ok()
}

fn sign(text: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let tag = URL_SAFE_NO_PAD.encode(hmac::sign(&key, text.as_bytes()));
    format!("{text}.{tag}")
}

/// The canonical form is that of a slow and simple reading of the rules. Input: base path, a line break, a target.
pub fn qsh(data: &[u8]) {
    let Some((base_path, text)) = halves(data) else {
        return;
    };
    let Ok(target) = Target::parse(text) else {
        return;
    };
    for rule in [Rule::JiraSigns, Rule::JiraVerifies, Rule::GitLab] {
        let canonical = rule.canonical("get", &target, base_path);
        assert_eq!(
            canonical,
            slowly(rule, text, base_path),
            "{rule:?} of {text:?}"
        );
        assert_eq!(
            canonical.matches('&').count(),
            canonical_ampersands(&canonical)
        );
    }
}

/// `METHOD&path&a=..&b=..`: as many as there are parameters, and at least two.
fn canonical_ampersands(canonical: &str) -> usize {
    let query = canonical.splitn(3, '&').nth(2).expect("a query, if empty");
    2 + query.matches('&').count()
}

/// Atlassian's "Understanding JWT for Connect apps", with what the libraries make of it.
fn slowly(rule: Rule, text: &str, base_path: &str) -> String {
    let text = text.split('#').next().unwrap_or_default();
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    let mut path = path.strip_prefix(base_path).unwrap_or(path).to_owned();
    let gitlab = rule == Rule::GitLab;
    if rule == Rule::JiraSigns {
        path = unescape(&path);
        path = path.strip_suffix('/').unwrap_or(&path).to_owned();
    }
    path = path.strip_suffix('/').unwrap_or(&path).to_owned();
    if !path.starts_with('/') {
        path.insert(0, '/');
    }
    // By name in the order of the rule; each value with whether it was there at all.
    let mut groups: BTreeMap<Vec<u8>, (String, Vec<Option<String>>)> = BTreeMap::new();
    let cut = |c: char| c == '&' || (gitlab && c == ';');
    for piece in query.split(cut).filter(|piece| !piece.is_empty()) {
        let (name, value) = match piece.split_once('=') {
            Some((name, value)) => (name, Some(unescape(&value.replace('+', " ")))),
            None => (piece, None),
        };
        let name = unescape(&name.replace('+', " "));
        if name == "jwt" || (name.is_empty() && !gitlab) {
            continue;
        }
        let order = if gitlab { name.clone() } else { escape(&name) };
        let group = groups
            .entry(order.into_bytes())
            .or_insert_with(|| (name, Vec::new()));
        group.1.push(value);
    }
    let groups: Vec<String> = groups
        .into_values()
        .map(|(name, mut values)| {
            let mut name = escape(&name);
            if gitlab {
                name = name.replace("%20", "+");
                values.retain(Option::is_some);
            } else {
                values.sort_by_key(|value| {
                    let text = value.clone().unwrap_or_default();
                    text.encode_utf16().collect::<Vec<_>>()
                });
            }
            let values: Vec<String> = values
                .iter()
                .map(|value| escape(value.as_deref().unwrap_or_default()))
                .collect();
            format!("{name}={}", values.join(","))
        })
        .collect();
    format!("GET&{}&{}", path.replace('&', "%26"), groups.join("&"))
}

fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let digit = |digit: Option<u8>| char::from(digit.unwrap_or_default()).to_digit(16);
        bytes.push(match byte {
            b'%' => {
                let (high, low) = (digit(rest.next()), digit(rest.next()));
                u8::try_from(high.expect("digit") * 16 + low.expect("digit")).expect("byte")
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).expect("the target's escapes are UTF-8")
}

fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let escaped = text.bytes().map(|byte| match byte {
        byte if plain(byte) => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    });
    escaped.collect()
}

/// Check and handler read the same: parameters are what everybody's form parser reads, nothing comes twice that is read
/// once, and what reaches Jira's REST is on the list and one segment stays one.
pub fn target(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(target) = Target::parse_strict(text, &["many"]) else {
        return;
    };
    assert!(target.path().is_empty() || target.path().starts_with('/'));
    assert!(!target.path().contains("//"));
    let clean = text.split('#').next().unwrap_or_default();
    let query = clean.split_once('?').map_or("", |(_, query)| query);
    let pairs: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect();
    let names: Vec<&str> = target.names().collect();
    assert_eq!(
        names,
        pairs.iter().map(|(name, _)| name).collect::<Vec<_>>()
    );
    for name in &names {
        let ours: Vec<&str> = target.query_all(name).collect();
        let theirs = pairs.iter().filter(|(known, _)| known == name);
        assert_eq!(ours, theirs.map(|(_, value)| value).collect::<Vec<_>>());
        assert!(
            ours.len() == 1 || ["many", "jwt"].contains(name),
            "{name} came twice"
        );
    }
    // As it came it parses again to the same.
    let again = Target::parse_strict(clean, &["many"]);
    assert_eq!(again.as_ref(), Ok(&target));
    for method in [http::Method::GET, http::Method::POST, http::Method::DELETE] {
        let Ok(call) = calls::parse(&method, &target) else {
            continue;
        };
        let listed = format!("{call:?}");
        assert!(target.path().starts_with("/rest/"), "{listed}");
        let plain = |id: &str| {
            !id.is_empty() && !id.contains(['/', '\\', '?', '#', '%']) && id != "." && id != ".."
        };
        if let jira_connect_proxy::domain::JiraCall::DeleteBranch { repository, branch } = &call {
            assert!(plain(repository) && plain(branch), "{listed}");
        }
    }
}

/// A body comes out with its ids in the namespace and in no other way changed: taken out again, it says the same.
/// Input: a letter for the family, a line break, a body.
pub fn ids(data: &[u8]) {
    let Some((family, body)) = family_and_body(data) else {
        return;
    };
    let ours = Namespace::parse("k3v9xq2m").expect("namespace");
    let Ok(survey) = namespace::survey(family, body) else {
        return;
    };
    let valid = |text: &[u8]| serde_json::from_slice::<IgnoredAny>(text).is_ok();
    assert!(valid(body.as_bytes()), "what was surveyed is JSON");
    let kept = namespace::check_kept(body, &survey).is_ok();
    let Ok(out) = namespace::put_in(&ours, family, body, &survey) else {
        return;
    };
    assert!(valid(&out));
    let text = std::str::from_utf8(&out).expect("UTF-8");
    // What is in a namespace counts as foreign to a link that keeps its ids, if there was an id at all.
    let again = namespace::survey(family, text).expect("still a body");
    assert!(namespace::check_kept(text, &again).is_err(), "it is marked");
    assert!(kept || body.contains('-'), "a plain number is nobody's");
    assert_eq!(
        (again.entities, again.longest_list),
        (survey.entities, survey.longest_list)
    );
    if body.contains("k3v9xq2m-") {
        return;
    }
    let back = namespace::take_out(&ours, &out).unwrap_or(out);
    let (Ok(before), Ok(after)) = (
        serde_json::from_str::<Value>(body),
        serde_json::from_slice::<Value>(&back),
    ) else {
        return;
    };
    assert_eq!(unmarked(before), unmarked(after));
}

/// A body without the relay's mark; no properties are as good as empty ones.
fn unmarked(mut body: Value) -> Value {
    let fields = body.as_object_mut().expect("an object");
    if let Some(properties) = fields.get_mut("properties").and_then(Value::as_object_mut) {
        properties.remove("relayNamespace");
    }
    let empty = |value: &Value| value.is_null() || value.as_object().is_some_and(|o| o.is_empty());
    if fields.get("properties").is_some_and(empty) {
        fields.remove("properties");
    }
    body
}

/// However a body is divided, no entity is lost, doubled or moved, and no piece is over a limit; what Jira's store does
/// not take is mended once and for all, and nothing else. Input: as for `ids`.
pub fn pieces(data: &[u8]) {
    let Some((family, body)) = family_and_body(data) else {
        return;
    };
    if serde_json::from_str::<IgnoredAny>(body).is_err() {
        return;
    }
    let mended = mend::mend(body);
    assert!(serde_json::from_str::<IgnoredAny>(&mended).is_ok());
    assert_eq!(mend::mend(&mended), mended);
    let bad = |c: char| matches!(c, '\u{fffe}' | '\u{ffff}' | '\u{10000}'..);
    assert!(!mended.contains(bad));
    // Each limit as small as it can be.
    let (entities_max, list_max) = (3, 2);
    let Ok(divided) = Split::new(family, body, entities_max, list_max) else {
        return;
    };
    let (key, limit) = match family {
        Family::Devinfo => ("repositories", usize::MAX),
        Family::Builds => ("builds", entities_max),
        Family::Deployments => ("deployments", entities_max),
        Family::FeatureFlags => ("flags", entities_max),
        Family::RemoteLinks => ("remoteLinks", entities_max),
    };
    let members = |text: &str| -> Option<Vec<String>> {
        let mut top: BTreeMap<String, Box<RawValue>> = serde_json::from_str(text).ok()?;
        let list = top.remove(key)?;
        let list: Vec<Box<RawValue>> = serde_json::from_str(list.get()).ok()?;
        Some(list.iter().map(|member| member.get().to_owned()).collect())
    };
    let (whole, count) = (members(body), divided.len());
    let pieces: Vec<String> = divided.pieces().collect();
    assert_eq!(pieces.len(), count);
    let mut found = Vec::new();
    for piece in &pieces {
        assert!(serde_json::from_str::<IgnoredAny>(piece).is_ok(), "{piece}");
        let members = members(piece).unwrap_or_default();
        assert!(members.len() <= limit || pieces.len() == 1);
        found.extend(members);
    }
    if family != Family::Devinfo
        && let Some(whole) = whole
    {
        assert_eq!(found, whole);
    }
    let _ = split::merge(
        pieces
            .iter()
            .filter_map(|piece| serde_json::from_str(piece).ok()),
    );
}

/// A configuration is taken whole or refused with reasons; one that is taken has addresses that fit together.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match Config::parse("proxy.toml", text) {
        Ok(config) => {
            assert!(config.app_base_url().ends_with("/-/jira_connect"));
            assert!(!config.proxy_url().ends_with('/'));
            assert!(config.app.key.len() <= 64);
            assert!(config.limits.body_max_bytes > 0 && config.limits.header_max_bytes > 0);
        }
        Err(error) => {
            assert!(!error.mistakes.is_empty());
            assert!(
                error
                    .mistakes
                    .iter()
                    .all(|mistake| !mistake.what.is_empty())
            );
            let again = Config::parse("proxy.toml", text).expect_err("the same");
            assert_eq!(error.to_string(), again.to_string());
        }
    }
}

/// Only what was sealed under this key and this id opens, and to the same bytes. Input: an id, a line break, anything.
pub fn records(data: &[u8]) {
    let at = data.iter().position(|byte| *byte == b'\n');
    let (id, content) = data.split_at(at.unwrap_or_default());
    let Ok(id) = std::str::from_utf8(id) else {
        return;
    };
    let sealer = Sealer::new(&[7; Sealer::KEY_BYTES]);
    assert!(sealer.open(id, content).is_err(), "nobody sealed that");
    let sealed = sealer.seal(id, content).expect("sealed");
    let opened = sealer.open(id, &sealed).expect("opens");
    assert_eq!(opened.as_slice(), content);
    assert!(sealer.open(&format!("{id}x"), &sealed).is_err(), "moved");
    let other = Sealer::new(&[8; Sealer::KEY_BYTES]);
    assert!(other.open(id, &sealed).is_err(), "another key");
    // One bit, somewhere, chosen by the input.
    let bit = content.iter().map(|byte| usize::from(*byte)).sum::<usize>() % (sealed.len() * 8);
    let mut changed = sealed.clone();
    if let Some(byte) = changed.get_mut(bit / 8) {
        *byte ^= 1 << (bit % 8);
    }
    assert!(sealer.open(id, &changed).is_err(), "changed");
    let cut = sealed.get(..sealed.len() - 1).unwrap_or_default();
    assert!(sealer.open(id, cut).is_err(), "cut");
}

/// No export makes a secret that GitLab's key did not seal, and what it sealed is read as it was written, whatever else
/// stands in the row. Input: the key file, a zero byte, the rest.
pub fn export(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (key_file, rest) = text.split_once('\0').unwrap_or((text, ""));
    if let Ok(key) = DbKeyBase::parse(key_file) {
        assert_eq!(format!("{key:?}"), "***");
        let sites = export::read(rest.as_bytes(), &key).unwrap_or_default();
        assert!(
            sites.iter().all(|site| site.shared_secret.is_err()),
            "forged"
        );
    }
    // The same text as fields of a row that GitLab could have written.
    let base = "a key of GitLab's, longer than 32 bytes";
    let key = aead::UnboundKey::new(&aead::AES_256_GCM, base.as_bytes().get(..32).expect("long"));
    let key = aead::LessSafeKey::new(key.expect("32 bytes"));
    let mut secret = SECRET.as_bytes().to_vec();
    let nonce = aead::Nonce::assume_unique_for_key(*b"twelve bytes");
    key.seal_in_place_append_tag(nonce, aead::Aad::empty(), &mut secret)
        .expect("sealed");
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut csv = csv::Writer::from_writer(Vec::new());
    let columns = [
        "base_url",
        "encrypted_shared_secret_iv",
        "client_key",
        "encrypted_shared_secret",
    ];
    csv.write_record(columns).expect("written");
    let base64 = base64::engine::general_purpose::STANDARD.encode("twelve bytes");
    csv.write_record([text, &format!("{base64}\n"), rest, &format!("\\x{hex}")])
        .expect("written");
    let csv = csv.into_inner().expect("written");
    let key = DbKeyBase::parse(base).expect("key");
    let sites = export::read(csv.as_slice(), &key).expect("an export");
    let [site] = sites.as_slice() else {
        panic!("one row came out as {}", sites.len());
    };
    assert_eq!(
        (site.base_url.as_str(), site.client_key.as_str()),
        (text, rest)
    );
    let secret = site.shared_secret.as_ref().expect("it opens");
    assert_eq!(secret.expose(), SECRET);
}

/// No file opens as a backup that was not made under the store key, whatever its checksum says.
pub fn backup(data: &[u8]) {
    let with_checksum = [
        data,
        ring::digest::digest(&ring::digest::SHA256, data).as_ref(),
    ]
    .concat();
    for file in [data, &with_checksum] {
        let Ok(opened) = BackupFile::open(file) else {
            continue;
        };
        if let Ok(reader) = opened.unlock(&[7; Sealer::KEY_BYTES]) {
            assert!(reader.verify().is_err(), "nobody sealed that");
        }
        // The checksum needs no key: it holds exactly where it was put, if anything of the file's form is there.
        let checked = BackupFile::open(file).expect("as before").check();
        assert!(checked.is_err() || file.len() >= 32 + 4);
    }
}

fn halves(data: &[u8]) -> Option<(&str, &str)> {
    std::str::from_utf8(data).ok()?.split_once('\n')
}

fn family_and_body(data: &[u8]) -> Option<(Family, &str)> {
    let (family, body) = halves(data)?;
    let family = match family {
        "b" => Family::Builds,
        "d" => Family::Deployments,
        "f" => Family::FeatureFlags,
        "r" => Family::RemoteLinks,
        _ => Family::Devinfo,
    };
    Some((family, body))
}
