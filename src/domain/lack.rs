//! What Jira can't do over an upstream.

use serde::Serialize;

use super::UpstreamKind;

/// Something of Jira's that an upstream has no place for. The page says so, so that nobody looks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lack {
    /// Jira lists GitLab's groups as workspaces: `searchConnectedWorkspaces` of Connect's development tool.
    WorkspaceSearch,
    /// Jira finds projects and adds them: `searchRepositories` and `associateRepository` of the same.
    RepositorySearch,
    /// "Create branch" in Jira leads to the site's instance. Forge has one address for it, the same for every site.
    CreateBranch,
}

impl Lack {
    /// `one_for_all`: every site is linked to the same one instance, so that an app for all sites can lead there.
    ///
    /// Source: npm `@forge/manifest` 13.7, `devops:developmentInfoProvider`. Without an app there are no modules at all.
    pub fn of(upstream: UpstreamKind, one_for_all: bool) -> &'static [Self] {
        match upstream {
            UpstreamKind::Connect => &[],
            UpstreamKind::Forge if one_for_all => &[Self::WorkspaceSearch, Self::RepositorySearch],
            UpstreamKind::Forge | UpstreamKind::Oauth => &[
                Self::WorkspaceSearch,
                Self::RepositorySearch,
                Self::CreateBranch,
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_lacks_nothing_and_no_app_has_no_branches() {
        assert!(Lack::of(UpstreamKind::Connect, false).is_empty());
        assert!(!Lack::of(UpstreamKind::Forge, true).contains(&Lack::CreateBranch));
        assert!(Lack::of(UpstreamKind::Forge, false).contains(&Lack::CreateBranch));
        assert!(Lack::of(UpstreamKind::Oauth, true).contains(&Lack::CreateBranch));
        assert_eq!(
            serde_json::to_value(Lack::of(UpstreamKind::Forge, true)).expect("JSON"),
            serde_json::json!(["workspace_search", "repository_search"])
        );
    }
}
