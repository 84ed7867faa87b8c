use std::io::Write as _;

use super::*;

fn load(file: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let mut temporary = tempfile::NamedTempFile::new().expect("temporary file");
    temporary.write_all(file.as_bytes()).expect("write");
    let environment = environment
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::load(Some(temporary.path()), environment)
}

fn mistakes(file: &str, environment: &[(&str, &str)]) -> Vec<String> {
    load(file, environment)
        .expect_err("mistakes")
        .mistakes
        .iter()
        .map(|mistake| {
            let place = mistake.place.rsplit('/').next().unwrap_or_default();
            let place = place.split_once(':').map_or(place, |(_, line)| line);
            format!("{place} {}", mistake.what)
        })
        .collect()
}

#[test]
fn the_embedded_defaults_are_a_whole_configuration() {
    let config = Config::load(None, []).expect("defaults");
    assert_eq!(config.public.url.as_str(), PLACEHOLDER_URL);
    assert_eq!(config.app.key, "gitlab-jira-connect-relay.example.com");
    assert_eq!(
        config.app_base_url(),
        "https://relay.example.com/-/jira_connect"
    );
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
}

#[test]
fn the_environment_lies_over_the_file_over_the_defaults() {
    let config = load(
        "[public]\nurl = \"https://file.example.com\"\nlisten = \"127.0.0.1:1\"\n",
        &[
            ("JIRA_CONNECT_PROXY__PUBLIC__URL", "https://env.example.com"),
            (
                "JIRA_CONNECT_PROXY__INSTANCES__ALLOW",
                "a.example.com, *.b.example.com",
            ),
            (
                "JIRA_CONNECT_PROXY__INSTANCES__AUTO_LINK",
                "[\"https://a.example.com\"]",
            ),
            (
                "JIRA_CONNECT_PROXY__INSTANCES__DANGEROUS_ALLOW_HTTP",
                "true",
            ),
            ("JIRA_CONNECT_PROXY__APP__KEY", "12345"),
            ("JIRA_CONNECT_PROXY__APP__NAME", "GitLab for us"),
            ("OTHER", "x"),
        ],
    )
    .expect("good");
    assert_eq!(config.public.url.as_str(), "https://env.example.com");
    assert_eq!(config.public.listen.port(), 1);
    assert_eq!(config.instances.policy.allow.len(), 2);
    assert_eq!(config.instances.policy.auto_link.len(), 1);
    assert!(config.instances.policy.allow_http);
    assert_eq!(
        (config.app.key.as_str(), config.app.name.as_str()),
        ("12345", "GitLab for us")
    );
}

#[test]
fn all_mistakes_are_told_at_once_with_their_places() {
    let found = mistakes(
        "[public]\nurl = \"https://relay.example.com/\"\nlisten = 8080\nport = 1\n\n[nonsense]\na = 1\n\n\
         [instances]\nallow = [\"*x\"]\n",
        &[
            ("JIRA_CONNECT_PROXY__LIMITS__BODY_MAX_BYTES", "many"),
            ("JIRA_CONNECT_PROXY__PUBLIC", "x"),
        ],
    );
    let starts: Vec<&str> = found
        .iter()
        .map(|line| line.split_whitespace().next().unwrap_or_default())
        .collect();
    for expected in ["2:", "3", "4", "6", "10:"] {
        assert!(starts.contains(&expected), "{expected} in {found:#?}");
    }
    assert_eq!(found.len(), 7, "{found:#?}");
}

#[test]
fn a_syntax_error_names_its_line() {
    let found = mistakes("[public]\nurl = https\n", &[]);
    assert!(
        found.first().is_some_and(|line| line.starts_with("2 ")),
        "{found:?}"
    );
}

#[test]
fn the_app_key_is_what_a_gitlab_under_the_same_url_would_have() {
    let long = format!("https://{}.example.com", "a".repeat(60));
    let config = load("", &[("JIRA_CONNECT_PROXY__PUBLIC__URL", &long)]).expect("good");
    assert_eq!(config.app.key.len(), 64);
    let config = load(
        "",
        &[("JIRA_CONNECT_PROXY__PUBLIC__URL", "http://127.0.0.1:8080")],
    )
    .expect("good");
    assert_eq!(config.app.key, "gitlab-jira-connect-127.0.0.1");
}

#[test]
fn relations_are_checked_too() {
    let found = mistakes(
        "[public]\nbase_path = \"/jira\"\ntls_cert = \"a.pem\"\n[instances]\nretry_min_ms = 10\nretry_max_ms = 5\n[app]\nkey = \"a b\"\nlogo_url = \"http://x\"\n",
        &[],
    );
    assert_eq!(found.len(), 5, "{found:#?}");
}

#[test]
fn a_collector_has_an_address_and_a_share() {
    let found = mistakes(
        "[telemetry]\notlp_endpoint = \"localhost:4317\"\notlp_sample_ratio = 1.5\n",
        &[],
    );
    assert_eq!(found.len(), 2, "{found:#?}");
    let config = load(
        "[telemetry]\notlp_endpoint = \"http://127.0.0.1:4318/v1/traces\"\n",
        &[("JIRA_CONNECT_PROXY__TELEMETRY__OTLP_SAMPLE_RATIO", "0.25")],
    );
    if cfg!(feature = "otlp") {
        let otlp = config.expect("good").telemetry.otlp.expect("a collector");
        assert_eq!(otlp.endpoint, "http://127.0.0.1:4318");
        assert!((otlp.sample_ratio - 0.25).abs() < f64::EPSILON);
    } else {
        assert!(config.is_err());
    }
}

#[test]
fn a_token_is_asked_about_more_than_once_before_it_ends() {
    let found = mistakes("[forge]\ncheck_every_secs = 301\n", &[]);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(load("[forge]\ncheck_every_secs = 300\n", &[]).is_ok());
}

#[test]
fn forge_is_off_until_an_app_is_named() {
    let config = load("", &[]).expect("good");
    assert_eq!(config.forge, None);
    assert_eq!(config.jira.api_url.as_str(), "https://api.atlassian.com");

    let app_id = "ari:cloud:ecosystem::app/8db33809-1f32-48bb-8c52-5877dab48107";
    let environment = [
        ("JIRA_CONNECT_PROXY__FORGE__APP_ID", app_id),
        (
            "JIRA_CONNECT_PROXY__FORGE__JWKS_URL",
            "http://127.0.0.1:1/keys",
        ),
        (
            "JIRA_CONNECT_PROXY__FORGE__ENVIRONMENTS",
            "PRODUCTION, STAGING",
        ),
        (
            "JIRA_CONNECT_PROXY__FORGE__PAGE_ORIGINS",
            "https://a1b2.cdn.prod.atlassian-dev.net",
        ),
    ];
    let forge = load("", &environment).expect("good").forge.expect("an app");
    assert_eq!(forge.app_id.as_str(), app_id);
    assert_eq!(forge.jwks_url, "http://127.0.0.1:1/keys");
    assert_eq!(
        forge.page_origins,
        ["https://a1b2.cdn.prod.atlassian-dev.net"]
    );
    assert_eq!(
        forge.environments,
        [
            ForgeEnvironmentType::Production,
            ForgeEnvironmentType::Staging
        ]
    );
}

#[test]
fn mistakes_about_forge_are_told_even_while_it_is_off() {
    let found = mistakes(
        "[forge]\nenvironments = [\"PROD\"]\njwks_url = \"http://keys.example.com\"\n\
         page_origins = [\"https://*.cdn.prod.atlassian-dev.net\"]\n\
         [jira]\napi_url = \"http://api.atlassian.com\"\n",
        &[],
    );
    assert_eq!(found.len(), 4, "{found:#?}");
    let found = mistakes(
        "[forge]\napp_id = \"8db33809-1f32-48bb-8c52-5877dab48107\"\nenvironments = []\n",
        &[],
    );
    assert_eq!(found.len(), 2, "{found:#?}");
}

#[test]
fn two_listeners_need_two_ports() {
    let found = mistakes("[admin]\nlisten = \"127.0.0.1:8080\"\n", &[]);
    assert_eq!(found.len(), 1, "{found:#?}");
}
