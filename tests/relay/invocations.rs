//! Invocation tokens of Forge: which are believed, what they prove, and what the key set behind them costs.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use jira_connect_proxy::{
    domain::{ForgeAppId, ForgeEnvironmentType, JiraApiUrl, JiraSites, KeyId},
    jwt::{InvocationVerifier, KeySet, UnverifiedToken, VerifiedInvocation, VerifyError},
    metrics::Metrics,
    reject::Reject,
};
use ring::hmac;
use serde_json::{Value, json};

use crate::{
    fakes::{
        FakeForge, FakeJira,
        forge::{
            APP_ID, CLOUD_ID, ENVIRONMENT_ID, Fit, ForgeKey, INSTALLATION_ID, key_set, with_header,
        },
        http::{answer, client},
    },
    harness::TestRelay,
};

const NOW: i64 = 1_800_000_000;

/// Forge, and somebody who believes it.
struct Stage {
    forge: FakeForge,
    verifier: InvocationVerifier,
    metrics: Arc<Metrics>,
}

impl Stage {
    async fn set() -> Self {
        let forge = FakeForge::start().await;
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let verifier = InvocationVerifier::new(
            ForgeAppId::parse(APP_ID).expect("app id"),
            vec![ForgeEnvironmentType::Production],
            JiraApiUrl::parse("https://api.atlassian.com").expect("url"),
            JiraSites::default(),
            KeySet::new(&forge.jwks_url(), client(), Arc::clone(&metrics)),
        );
        Self {
            forge,
            verifier,
            metrics,
        }
    }

    async fn verify_at(&self, token: &str, now: i64) -> Result<VerifiedInvocation, VerifyError> {
        let token = UnverifiedToken::parse(token)?;
        self.verifier.verify(&token, at(now)).await
    }

    async fn verify(&self, token: &str) -> Result<VerifiedInvocation, VerifyError> {
        self.verify_at(token, NOW).await
    }

    /// Why a token is refused, if it is.
    async fn code(&self, token: &str) -> &'static str {
        code(self.verify(token).await)
    }

    /// The verdict about a new token of Forge's.
    async fn fresh(&self, now: i64) -> &'static str {
        let token = self.forge.sign(&self.forge.trigger(now));
        code(self.verify_at(&token, now).await)
    }

    fn counted(&self, outcome: &str) -> u64 {
        let fetches = &self.metrics.forge_key_set_fetches;
        fetches.with_label_values(&[outcome]).get()
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("second")
}

fn code(verdict: Result<VerifiedInvocation, VerifyError>) -> &'static str {
    verdict.map_or_else(|error| error.code(), |_| "believed")
}

#[tokio::test]
async fn a_page_and_a_trigger_prove_what_they_say() {
    let stage = Stage::set().await;
    let token = stage.forge.sign(&stage.forge.page(NOW));
    let page = stage.verify(&token).await.expect("believed");
    assert_eq!(page.installation_id.as_str(), INSTALLATION_ID);
    assert_eq!(page.environment_id.as_str(), ENVIRONMENT_ID);
    assert_eq!(page.environment, ForgeEnvironmentType::Production);
    assert_eq!(page.cloud_id.as_str(), CLOUD_ID);
    let api_base_url = format!("https://api.atlassian.com/ex/jira/{CLOUD_ID}");
    assert_eq!(page.api_base_url.as_str(), api_base_url);
    let site = page.site.as_ref().map(|site| site.as_str());
    assert_eq!(site, Some("https://acme.atlassian.net"));
    assert_eq!(page.app_version, "2.1.0");
    let account = Some("655362:312d3308-8954-42b0-aa38-771a10c88656");
    assert_eq!(page.account_id.as_deref(), account);
    let module = (page.module.kind.as_str(), page.module.key.as_str());
    assert_eq!(module, ("jira:adminPage", "page"));
    assert_eq!(page.issued_at, at(NOW));
    assert!(page.is_pages());

    let token = stage.forge.sign(&stage.forge.trigger(NOW));
    let trigger = stage.verify(&token).await.expect("believed");
    assert!(!trigger.is_pages());
    assert_eq!((trigger.account_id, trigger.site), (None, None));
    assert_eq!(trigger.cloud_id, page.cloud_id);
    assert_eq!(stage.forge.fetches(), 1, "one set for both");
}

#[tokio::test]
async fn what_forge_may_leave_out_or_write_otherwise_is_taken() {
    let stage = Stage::set().await;
    let fit = || stage.forge.page(NOW);
    let api_base_url = format!("https://api.atlassian.com/ex/jira/{CLOUD_ID}/");
    let environment = "ari:cloud:ecosystem::environment/aa911f10-c54b-4b93-9e27-dd2947840b9e";
    for (what, fit) in [
        ("no context", fit().without("/context")),
        ("an empty context", fit().with("/context", json!({}))),
        ("null for nobody", fit().with("/principal", Value::Null)),
        ("null for no context", fit().with("/context", Value::Null)),
        (
            "an audience of one in a list",
            fit().with("/aud", json!([APP_ID])),
        ),
        (
            "a slash behind the API",
            fit().with("/app/apiBaseUrl", api_base_url),
        ),
        ("one place for the id", fit().without("/app/installationId")),
        ("the other", fit().without("/app/installation")),
        (
            "an environment without its app",
            fit().with("/app/environment/id", environment),
        ),
        (
            "claims of later",
            fit().with("/app/novelty", json!([{"a": 1}])),
        ),
        (
            "59 s after its end",
            fit()
                .with("/exp", NOW - 59)
                .with("/iat", NOW - 84)
                .with("/nbf", NOW - 84),
        ),
        (
            "59 s before its beginning",
            fit()
                .with("/exp", NOW + 84)
                .with("/iat", NOW + 59)
                .with("/nbf", NOW + 59),
        ),
    ] {
        let token = stage.forge.sign(&fit);
        assert_eq!(stage.code(&token).await, "believed", "{what}");
    }
    // A site that we do not serve is no site to us, and no reason to disbelieve the rest.
    for url in [
        "https://acme.jira-dev.com",
        "https://acme.atlassian.net.evil.tld",
        "x",
        "",
    ] {
        let token = stage.forge.sign(&fit().with("/context/siteUrl", url));
        let verified = stage.verify(&token).await.expect("believed");
        assert_eq!(verified.site, None, "{url}");
    }
}

#[tokio::test]
async fn claims_that_do_not_fit_are_refused_each_with_its_reason() {
    let stage = Stage::set().await;
    let fit = || stage.forge.page(NOW);
    let other_app = "ari:cloud:ecosystem::app/00000000-0000-4000-8000-000000000000";
    let other_site = "00000000-0000-4000-8000-000000000000";
    let other_installation =
        "ari:cloud:ecosystem::installation/00000000-0000-4000-8000-000000000000";
    let api = |url: &str| fit().with("/app/apiBaseUrl", format!("{url}{CLOUD_ID}"));
    for (what, fit, expected) in [
        (
            "another app's",
            fit().with("/aud", other_app),
            "token_audience",
        ),
        (
            "ours and another's",
            fit().with("/aud", json!([APP_ID, other_app])),
            "token_audience",
        ),
        ("nobody's", fit().with("/aud", json!([])), "token_audience"),
        ("any app's", fit().with("/aud", "*"), "token_audience"),
        (
            "longer than ours",
            fit().with("/aud", format!("{APP_ID}/")),
            "token_audience",
        ),
        (
            "the bare id",
            fit().with("/aud", "8db33809-1f32-48bb-8c52-5877dab48107"),
            "token_audience",
        ),
        ("no audience", fit().without("/aud"), "token_claim_missing"),
        (
            "null for an audience",
            fit().with("/aud", Value::Null),
            "token_claim_missing",
        ),
        (
            "an object for an audience",
            fit().with("/aud", json!({})),
            "token_malformed",
        ),
        (
            "app.id of another",
            fit().with("/app/id", other_app),
            "token_audience",
        ),
        ("no app.id", fit().without("/app/id"), "token_audience"),
        (
            "another issuer",
            fit().with("/iss", "forge/context-token"),
            "token_issuer",
        ),
        (
            "an issuer like ours",
            fit().with("/iss", "forge/invocation-token/"),
            "token_issuer",
        ),
        ("no issuer", fit().without("/iss"), "token_claim_missing"),
        ("no end", fit().without("/exp"), "token_claim_missing"),
        ("no beginning", fit().without("/iat"), "token_claim_missing"),
        ("no nbf", fit().without("/nbf"), "token_claim_missing"),
        (
            "a word for an end",
            fit().with("/exp", "never"),
            "token_malformed",
        ),
        (
            "over",
            fit()
                .with("/exp", NOW - 60)
                .with("/iat", NOW - 85)
                .with("/nbf", NOW - 85),
            "token_expired",
        ),
        (
            "from the future",
            fit().with("/iat", NOW + 61).with("/exp", NOW + 86),
            "token_from_the_future",
        ),
        (
            "not valid yet",
            fit().with("/nbf", NOW + 61).with("/exp", NOW + 86),
            "token_not_yet_valid",
        ),
        (
            "ends before it begins",
            fit().with("/exp", NOW),
            "token_malformed",
        ),
        (
            "in development",
            fit().with("/app/environment/type", "DEVELOPMENT"),
            "token_environment",
        ),
        (
            "in staging",
            fit().with("/app/environment/type", "STAGING"),
            "token_environment",
        ),
        (
            "somewhere",
            fit().with("/app/environment/type", "production"),
            "token_malformed",
        ),
        (
            "no environment",
            fit().without("/app/environment"),
            "token_claim_missing",
        ),
        (
            "no type of environment",
            fit().without("/app/environment/type"),
            "token_claim_missing",
        ),
        (
            "an environment's odd id",
            fit().with("/app/environment/id", "x"),
            "token_malformed",
        ),
        (
            "another host",
            api("https://evil.tld/ex/jira/"),
            "token_api_address",
        ),
        (
            "a host like ours",
            api("https://api.atlassian.com.evil.tld/ex/jira/"),
            "token_api_address",
        ),
        (
            "a user like our host",
            api("https://api.atlassian.com@evil.tld/ex/jira/"),
            "token_api_address",
        ),
        (
            "in clear",
            api("http://api.atlassian.com/ex/jira/"),
            "token_api_address",
        ),
        (
            "another port",
            api("https://api.atlassian.com:8443/ex/jira/"),
            "token_api_address",
        ),
        (
            "another product",
            api("https://api.atlassian.com/ex/confluence/"),
            "token_api_address",
        ),
        (
            "up and away",
            api("https://api.atlassian.com/ex/jira/../"),
            "token_api_address",
        ),
        (
            "a cloud id that is a path",
            fit().with(
                "/app/apiBaseUrl",
                "https://api.atlassian.com/ex/jira/../../x",
            ),
            "token_api_address",
        ),
        (
            "no API",
            fit().without("/app/apiBaseUrl"),
            "token_claim_missing",
        ),
        (
            "two sites",
            fit().with("/context/cloudId", other_site),
            "token_malformed",
        ),
        (
            "two installations",
            fit().with("/app/installationId", other_installation),
            "token_malformed",
        ),
        (
            "no installation",
            fit()
                .without("/app/installationId")
                .without("/app/installation"),
            "token_claim_missing",
        ),
        (
            "an app for an installation",
            fit()
                .without("/app/installation")
                .with("/app/installationId", APP_ID),
            "token_malformed",
        ),
        (
            "a path for an installation",
            fit().without("/app/installation").with(
                "/app/installationId",
                "ari:cloud:ecosystem::installation/../x",
            ),
            "token_malformed",
        ),
        (
            "no version",
            fit().without("/app/appVersion"),
            "token_claim_missing",
        ),
        (
            "a version over two lines",
            fit().with("/app/appVersion", "1\n2"),
            "token_malformed",
        ),
        (
            "no module",
            fit().without("/app/module"),
            "token_claim_missing",
        ),
        (
            "no module key",
            fit().without("/app/module/key"),
            "token_claim_missing",
        ),
        (
            "a long module key",
            fit().with("/app/module/key", "k".repeat(256)),
            "token_malformed",
        ),
        (
            "a user with a space",
            fit().with("/principal", "a b"),
            "token_malformed",
        ),
        (
            "a user who is a list",
            fit().with("/principal", json!([])),
            "token_malformed",
        ),
        ("no jti", fit().without("/jti"), "token_claim_missing"),
        (
            "an empty jti",
            fit().with("/jti", ""),
            "token_claim_missing",
        ),
        (
            "a number for a jti",
            fit().with("/jti", 1),
            "token_malformed",
        ),
        ("no app", fit().without("/app"), "token_claim_missing"),
        (
            "a word for an app",
            fit().with("/app", "x"),
            "token_malformed",
        ),
    ] {
        let token = stage.forge.sign(&fit);
        assert_eq!(stage.code(&token).await, expected, "{what}");
    }
    assert_eq!(
        stage.forge.fetches(),
        0,
        "none of it is worth a look at the keys"
    );
}

#[tokio::test]
async fn only_forges_keys_sign_whatever_the_header_says() {
    let stage = Stage::set().await;
    let attacker = FakeForge::start().await;
    let fit = || stage.forge.page(NOW);
    let jwk = stage.forge.key.jwk();
    let hs256 = |fit: &Fit, secret: &[u8]| {
        let text = fit.clone().with_header("alg", "HS256").unsigned();
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), text.as_bytes());
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(tag))
    };
    let pem = stage.forge.key.record.public_pem.clone();
    let der: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let der = base64::engine::general_purpose::STANDARD
        .decode(der)
        .expect("DER");
    let modulus = URL_SAFE_NO_PAD
        .decode(jwk["n"].as_str().expect("n"))
        .expect("n");
    for (what, secret) in [
        ("the public key's PEM", pem.as_bytes()),
        (
            "its PEM without the last line break",
            pem.trim_end().as_bytes(),
        ),
        ("its DER", &der),
        ("its modulus", &modulus),
        (
            "its modulus as text",
            jwk["n"].as_str().expect("n").as_bytes(),
        ),
        ("the whole key as text", jwk.to_string().as_bytes()),
        ("nothing", b""),
    ] {
        let token = hs256(&fit(), secret);
        assert_eq!(
            stage.code(&token).await,
            "token_algorithm",
            "HS256 with {what}"
        );
        // The same under the right name: the signature is no RSA signature.
        let (_, tag) = token.rsplit_once('.').expect("token");
        let token = format!("{}.{tag}", fit().unsigned());
        assert_eq!(
            stage.code(&token).await,
            "token_signature",
            "a tag with {what}"
        );
    }
    for algorithm in ["none", "None", "", "RS512", "PS256", "ES256", "rs256"] {
        let token = stage.forge.sign(&fit().with_header("alg", algorithm));
        assert_eq!(stage.code(&token).await, "token_algorithm", "{algorithm:?}");
    }
    let unsigned = format!("{}.", fit().unsigned());
    assert_eq!(stage.code(&unsigned).await, "token_signature");
    let unsigned = format!("{}.", fit().with_header("alg", "none").unsigned());
    assert_eq!(stage.code(&unsigned).await, "token_algorithm");

    // Somebody else's key under Forge's name, with all the ways to say where it is.
    let theirs = attacker.key.jwk();
    let url = attacker.jwks_url();
    for (what, fit) in [
        ("nothing", fit()),
        ("jku", fit().with_header("jku", url.as_str())),
        ("x5u", fit().with_header("x5u", url.as_str())),
        ("jwk", fit().with_header("jwk", theirs.clone())),
        ("x5c", fit().with_header("x5c", json!(["AA=="]))),
        (
            "all",
            fit()
                .with_header("jku", url.as_str())
                .with_header("x5u", url.as_str())
                .with_header("jwk", theirs.clone()),
        ),
        ("an issuer's address", fit().with("/jwks_uri", url.as_str())),
    ] {
        let token = attacker.sign(&fit);
        assert_eq!(stage.code(&token).await, "token_signature", "{what}");
        let named = fit.with_header("kid", attacker.key.kid.as_str());
        let token = attacker.sign(&named);
        assert_eq!(stage.code(&token).await, "token_unknown_key", "{what}");
    }
    assert_eq!(attacker.fetches(), 0);

    // They do no harm where Forge's own key signed.
    let token = stage.forge.sign(
        &fit()
            .with_header("jku", url.as_str())
            .with_header("jwk", theirs),
    );
    assert_eq!(stage.code(&token).await, "believed");
    assert_eq!((attacker.fetches(), stage.forge.fetches()), (0, 1));

    // One claim changed behind the signature.
    let (text, signature) = (fit(), stage.forge.sign(&fit()));
    let signature = signature.rsplit_once('.').expect("token").1;
    let token = format!(
        "{}.{signature}",
        text.with("/principal", "somebody-else").unsigned()
    );
    assert_eq!(stage.code(&token).await, "token_signature");
}

#[tokio::test]
async fn a_strange_kid_costs_nothing() {
    let stage = Stage::set().await;
    assert_eq!(stage.fresh(NOW).await, "believed");
    let fit = || stage.forge.page(NOW);
    let mut nameless = fit();
    nameless
        .header
        .as_object_mut()
        .expect("object")
        .remove("kid");
    for (fit, expected) in [
        (fit().with_header("kid", "../../keys"), "token_key_id"),
        (fit().with_header("kid", "/etc/passwd"), "token_key_id"),
        (
            fit().with_header("kid", "https://evil.tld/key"),
            "token_key_id",
        ),
        (fit().with_header("kid", "a?b=c#d"), "token_key_id"),
        (fit().with_header("kid", ""), "token_key_id"),
        (fit().with_header("kid", "k".repeat(4000)), "token_key_id"),
        (
            fit().with_header("kid", "k".repeat(10_000)),
            "token_too_large",
        ),
        (fit().with_header("kid", 7), "token_malformed"),
        (fit().with_header("kid", Value::Null), "token_claim_missing"),
        (nameless, "token_claim_missing"),
        (
            fit().with_header("kid", "forge/invocation-token/unknown"),
            "token_unknown_key",
        ),
    ] {
        let token = stage.forge.sign(&fit);
        let kid = fit.header["kid"].to_string();
        assert_eq!(stage.code(&token).await, expected, "{kid:.40}");
    }
    assert_eq!(stage.forge.fetches(), 1);
}

#[tokio::test]
async fn a_token_is_good_for_one_request() {
    let stage = Stage::set().await;
    let token = stage.forge.sign(&stage.forge.page(NOW));
    let parsed = UnverifiedToken::parse(&token).expect("token");
    let at_once = join_all((0..20).map(|_| stage.verifier.verify(&parsed, at(NOW)))).await;
    assert_eq!(at_once.iter().filter(|verdict| verdict.is_ok()).count(), 1);
    // Until it would not be believed anyway.
    let last = NOW + 25 + 59;
    assert_eq!(code(stage.verify_at(&token, last).await), "token_replayed");
    assert_eq!(
        code(stage.verify_at(&token, last + 1).await),
        "token_expired"
    );

    // Another token of the same name is the same; the same name at another installation is not.
    let fit = stage.forge.page(NOW).with("/jti", "x");
    assert_eq!(stage.code(&stage.forge.sign(&fit)).await, "believed");
    let again = fit.clone().with("/principal", "somebody-else");
    assert_eq!(
        stage.code(&stage.forge.sign(&again)).await,
        "token_replayed"
    );
    let other = "ari:cloud:ecosystem::installation/00000000-0000-4000-8000-000000000000";
    let elsewhere = fit
        .with("/app/installationId", other)
        .with("/app/installation/id", other);
    let verified = stage
        .verify(&stage.forge.sign(&elsewhere))
        .await
        .expect("believed");
    assert_eq!(verified.installation_id.as_str(), other, "the token's own");

    // What could not be done may be tried again with the same token, once.
    stage.verifier.give_back(&verified);
    let token = stage.forge.sign(&elsewhere);
    assert_eq!(stage.code(&token).await, "believed");
    assert_eq!(stage.code(&token).await, "token_replayed");

    // A token that did not verify uses nothing up.
    let fit = stage.forge.page(NOW);
    let forged = ForgeKey::new().await.sign(&fit);
    assert_eq!(stage.code(&forged).await, "token_signature");
    assert_eq!(stage.code(&stage.forge.sign(&fit)).await, "believed");
}

#[tokio::test]
async fn one_fetch_serves_many_callers_and_a_rotation() {
    let stage = Stage::set().await;
    let many = join_all((0..20).map(|_| stage.fresh(NOW))).await;
    assert!(
        many.iter().all(|verdict| *verdict == "believed"),
        "{many:?}"
    );
    assert_eq!(stage.forge.fetches(), 1);
    assert_eq!(stage.metrics.forge_key_set_fetched_at.get(), NOW);

    // The set holds for 600 s. A new key in it is found before that, but not because of just any new name.
    let new = ForgeKey::new().await;
    stage.forge.serve(key_set(&[&stage.forge.key, &new]));
    let signed_by_new = |now| {
        let fit = stage.forge.page(now);
        new.sign(&fit.with_header("kid", new.kid.as_str()))
    };
    let verdict = async |now| code(stage.verify_at(&signed_by_new(now), now).await);
    assert_eq!(verdict(NOW + 9).await, "token_unknown_key");
    assert_eq!(stage.forge.fetches(), 1);
    assert_eq!(verdict(NOW + 10).await, "believed");
    assert_eq!(
        stage.fresh(NOW + 10).await,
        "believed",
        "the old one still counts"
    );
    assert_eq!(stage.forge.fetches(), 2);

    // The old one is withdrawn: it counts until the set is over, and then no more.
    stage.forge.serve(key_set(&[&new]));
    assert_eq!(stage.fresh(NOW + 609).await, "believed");
    assert_eq!(stage.forge.fetches(), 2);
    assert_eq!(stage.fresh(NOW + 610).await, "token_unknown_key");
    assert_eq!(verdict(NOW + 610).await, "believed");
    assert_eq!((stage.forge.fetches(), stage.counted("fetched")), (3, 3));
}

#[tokio::test]
async fn the_last_good_set_serves_while_no_other_can_be_had() {
    let stage = Stage::set().await;
    let good = key_set(&[&stage.forge.key]);
    // Without any, nothing is believed, and that it is not the token's fault is said.
    stage.forge.serve(answer(500, "broken on purpose"));
    let token = stage.forge.sign(&stage.forge.page(NOW));
    let error = stage.verify(&token).await.expect_err("no keys");
    assert_eq!(error.code(), "key_set_unavailable");
    assert_eq!(Reject::from(error).code, "key_set_unavailable");
    stage.forge.serve(good.clone());
    assert_eq!(
        stage.fresh(NOW + 4).await,
        "key_set_unavailable",
        "asked just now"
    );
    assert_eq!(stage.fresh(NOW + 5).await, "believed");

    let elsewhere = FakeForge::start().await;
    let padded = json!({"keys": [stage.forge.key.jwk()], "padding": "x".repeat(128 * 1024)});
    let redirect = with_header(answer(302, ""), "location", &elsewhere.jwks_url());
    let mut now = NOW + 5;
    for (what, bad) in [
        ("an error", answer(500, "broken on purpose")),
        ("not found", answer(404, "")),
        ("a page", answer(200, "<html>")),
        ("half a set", answer(200, "{\"keys\":[")),
        ("an empty set", answer(200, "{\"keys\":[]}")),
        ("a huge set", answer(200, padded.to_string())),
        ("a redirect", redirect),
    ] {
        stage.forge.serve(bad);
        now += 3600;
        let before = stage.forge.fetches();
        assert_eq!(stage.fresh(now).await, "believed", "{what}");
        assert_eq!(stage.fresh(now + 4).await, "believed", "{what}");
        assert_eq!(stage.forge.fetches(), before + 1, "{what}: asked once");
        let strange = stage.forge.page(now).with_header("kid", "strange");
        let verdict = stage.verify_at(&stage.forge.sign(&strange), now).await;
        assert_eq!(code(verdict), "key_set_unavailable", "{what}");
    }
    assert_eq!(elsewhere.fetches(), 0, "no redirect is followed");
    assert_eq!((stage.counted("fetched"), stage.counted("failed")), (1, 8));
}

#[tokio::test]
async fn a_flood_of_unknown_kids_causes_few_fetches() {
    let stage = Stage::set().await;
    let keys = stage.verifier.keys().clone();
    let name = |n: usize| KeyId::parse(&format!("strange-{n}")).expect("kid");
    let asked = join_all((0..500).map(|n| {
        let keys = keys.clone();
        async move { keys.find(&name(n), at(NOW)).await.map(drop) }
    }));
    let unknown = |error: &VerifyError| error.code() == "token_unknown_key";
    assert!(
        asked
            .await
            .iter()
            .all(|found| found.as_ref().is_err_and(unknown))
    );
    assert_eq!(stage.forge.fetches(), 1);
    // For a minute, a hundred in each second.
    for n in 0..6000_usize {
        let now = at(NOW) + SignedDuration::from_millis(10 * n as i64);
        assert!(keys.find(&name(n), now).await.is_err());
    }
    assert_eq!(stage.forge.fetches(), 6);
    // A clock that is set back does not stop us from asking.
    assert!(keys.find(&name(0), at(NOW - 3600)).await.is_err());
    assert_eq!(stage.forge.fetches(), 7);
    assert_eq!(stage.fresh(NOW - 3600).await, "believed");
}

#[tokio::test]
async fn a_key_server_that_says_nothing_keeps_nobody_with_a_known_key_waiting() {
    let stage = Arc::new(Stage::set().await);
    assert_eq!(stage.fresh(NOW).await, "believed");
    stage.forge.fall_silent();
    let later = NOW + 3600;
    let waits = tokio::spawn({
        let stage = Arc::clone(&stage);
        async move { stage.fresh(later).await }
    });
    while stage.forge.fetches() < 2 {
        tokio::task::yield_now().await;
    }
    // One asks, and the others go on with what we have.
    for _ in 0..20 {
        assert_eq!(stage.fresh(later).await, "believed");
    }
    assert!(!waits.is_finished());
    assert_eq!(
        waits.await.expect("task"),
        "believed",
        "the last good one, after a while"
    );
    assert_eq!(stage.counted("failed"), 1);
}

#[tokio::test]
async fn whoever_asks_and_goes_away_keeps_nobody_from_the_keys() {
    let stage = Stage::set().await;
    stage.forge.fall_silent();
    let strange = KeyId::parse("strange").expect("kid");
    for asked in 1..=2 {
        let find = stage.verifier.keys().find(&strange, at(NOW));
        tokio::select! {
            _ = find => panic!("nobody answers"),
            () = async { while stage.forge.fetches() < asked { tokio::task::yield_now().await; } } => {}
        }
    }
    stage.forge.speak_again();
    assert_eq!(stage.fresh(NOW).await, "believed");
    assert_eq!(stage.counted("fetched"), 1);
}

/// The configuration reaches the verifier, and the doctor its keys.
#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_looks_at_the_key_set_of_a_forge_app() {
    let jira = FakeJira::start("tenant").await;
    let forge = FakeForge::start().await;
    let relay = TestRelay::start_with(&jira, |settings| {
        settings.set("FORGE__APP_ID", APP_ID);
        settings.set("FORGE__JWKS_URL", &forge.jwks_url());
    })
    .await;
    let rung = async || {
        let report = relay.admin("POST", "/api/v1/doctor", None, 200).await;
        let steps = report["steps"].as_array().expect("steps").clone();
        let step = steps
            .into_iter()
            .find(|step| step["rung"] == "forge_key_set");
        step.expect("a rung")
    };
    let step = rung().await;
    assert_eq!(
        (&step["verdict"], &step["code"]),
        (&json!("ok"), &json!("forge_key_set"))
    );
    assert!(
        step["message"]
            .as_str()
            .is_some_and(|text| text.contains("1 key"))
    );
    forge.serve(answer(200, "<html>"));
    let step = rung().await;
    let code = (&step["verdict"], &step["code"]);
    assert_eq!(code, (&json!("fail"), &json!("forge_key_set_unavailable")));
}
