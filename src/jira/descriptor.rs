//! The app descriptor: what Jira is told about the app, with everything that a GitLab's own has
//! (GitLab `app/controllers/jira_connect/app_descriptor_controller.rb`).
//!
//! Atlassian's rules on keys and URLs are checked when the configuration is read.

use serde_json::{Value, json};

use crate::config::Config;

/// The descriptor as JSON.
pub fn descriptor(config: &Config) -> Value {
    let app = &config.app;
    let base_url = config.app_base_url();
    let logo_url = app
        .logo_url
        .clone()
        .unwrap_or_else(|| format!("{base_url}/logo.svg"));
    let provider = |key: &str, name: &str| {
        json!({
            "key": key,
            "name": {"value": name},
            "actions": {},
            "homeUrl": app.vendor_url,
            "logoUrl": logo_url,
            "documentationUrl": app.documentation_url,
        })
    };
    json!({
        "name": app.name,
        "description": app.description,
        "key": app.key,
        "baseUrl": base_url,
        "lifecycle": {"installed": "/events/installed", "uninstalled": "/events/uninstalled"},
        "vendor": {"name": app.vendor_name, "url": app.vendor_url},
        "links": {"documentation": app.documentation_url},
        "authentication": {"type": "jwt"},
        "scopes": ["READ", "WRITE", "DELETE"],
        "apiVersion": 1,
        "apiMigrations": {"context-qsh": true, "signed-install": true, "gdpr": true},
        "modules": {
            "postInstallPage": {
                "key": "gitlab-configuration",
                "name": {"value": "GitLab Configuration"},
                "url": "/subscriptions",
                "conditions": [{"condition": "user_is_admin", "invert": false}],
            },
            "jiraDevelopmentTool": {
                "key": "gitlab-development-tool",
                "application": {"value": app.display_name},
                "name": {"value": app.display_name},
                "url": app.vendor_url,
                "logoUrl": logo_url,
                "capabilities": ["branch", "commit", "pull_request"],
                "actions": {
                    "createBranch": {"templateUrl": format!(
                        "{base_url}/branches/route?issue_key={{issue.key}}&issue_summary={{issue.summary}}&jwt={{jwt}}&addonkey={}",
                        app.key
                    )},
                    "searchConnectedWorkspaces": {"templateUrl": format!("{base_url}/workspaces/search")},
                    "searchRepositories": {"templateUrl": format!("{base_url}/repositories/search")},
                    "associateRepository": {"templateUrl": format!("{base_url}/repositories/associate")},
                },
            },
            "jiraBuildInfoProvider": provider("gitlab-ci", "GitLab CI"),
            "jiraDeploymentInfoProvider": provider("gitlab-deployments", "GitLab Deployments"),
            "jiraFeatureFlagInfoProvider": provider("gitlab-feature-flags", "GitLab Feature Flags"),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Value {
        let environment = variables
            .iter()
            .map(|(name, value)| (format!("JIRA_CONNECT_PROXY__{name}"), (*value).to_owned()));
        descriptor(&Config::load(None, environment).expect("config"))
    }

    /// Atlassian's rules: module keys of at most 255 of `[a-zA-Z0-9-]`, absolute URLs where a user's browser
    /// or Jira's front end goes, paths relative to `baseUrl` for what Jira's server calls.
    #[test]
    fn keeps_atlassians_rules() {
        let descriptor = with(&[("PUBLIC__URL", "https://jira.example.com")]);
        assert_eq!(
            descriptor["baseUrl"],
            "https://jira.example.com/-/jira_connect"
        );
        assert_eq!(descriptor["key"], "gitlab-jira-connect-jira.example.com");
        for path in [
            "/lifecycle/installed",
            "/lifecycle/uninstalled",
            "/modules/postInstallPage/url",
        ] {
            let url = descriptor
                .pointer(path)
                .and_then(Value::as_str)
                .expect(path);
            assert!(url.starts_with('/') && !url.starts_with("//"), "{path}");
        }
        let mut absolute = 0;
        let mut keys = Vec::new();
        let mut open = vec![(String::new(), &descriptor)];
        while let Some((name, value)) = open.pop() {
            if let Some(object) = value.as_object() {
                open.extend(object.iter().map(|(name, value)| (name.clone(), value)));
            }
            let Some(text) = value.as_str() else { continue };
            if [
                "logoUrl",
                "homeUrl",
                "documentationUrl",
                "documentation",
                "templateUrl",
            ]
            .contains(&name.as_str())
            {
                assert!(text.starts_with("https://"), "{name}: {text}");
                absolute += 1;
            }
            if name == "key" && !text.starts_with("gitlab-jira-connect-") {
                assert!(
                    text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'),
                    "{text}"
                );
                keys.push(text.to_owned());
            }
        }
        assert_eq!(absolute, 15);
        keys.sort();
        let count = keys.len();
        keys.dedup();
        assert_eq!((count, keys.len()), (5, 5), "module keys are distinct");
    }

    #[test]
    fn can_stand_in_for_a_gitlab_under_a_relative_url() {
        let descriptor = with(&[
            ("PUBLIC__URL", "https://code.example.com"),
            ("PUBLIC__BASE_PATH", "/gitlab/-/jira_connect"),
            ("APP__KEY", "gitlab-jira-connect-gitlab.com"),
        ]);
        assert_eq!(
            descriptor["baseUrl"],
            "https://code.example.com/gitlab/-/jira_connect"
        );
        assert_eq!(descriptor["key"], "gitlab-jira-connect-gitlab.com");
        let template =
            descriptor.pointer("/modules/jiraDevelopmentTool/actions/createBranch/templateUrl");
        assert_eq!(
            template.and_then(Value::as_str),
            Some(
                "https://code.example.com/gitlab/-/jira_connect/branches/route?issue_key={issue.key}&issue_summary={issue.summary}&jwt={jwt}&addonkey=gitlab-jira-connect-gitlab.com"
            )
        );
    }
}
