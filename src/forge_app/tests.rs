use std::fs;

use tempfile::TempDir;

use super::{folder::Done, *};

const URL: (&str, &str) = ("PUBLIC__URL", "https://jira.example.com");

fn config(variables: &[(&str, &str)]) -> Config {
    let environment = variables
        .iter()
        .map(|(name, value)| (format!("JIRA_CONNECT_PROXY__{name}"), (*value).to_owned()));
    Config::load(None, environment).expect("config")
}

struct App {
    _parent: TempDir,
    folder: std::path::PathBuf,
}

impl App {
    fn init(config: &Config) -> Self {
        let parent = TempDir::new().expect("folder");
        let folder = parent.path().join("app");
        let changes = init(&folder, config, None).expect("made");
        assert!(changes.iter().all(|change| change.done == Done::Created));
        Self {
            _parent: parent,
            folder,
        }
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.folder.join(path)).expect(path)
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.folder.join(path), text).expect(path);
    }

    fn edit(&self, path: &str, from: &str, to: &str) {
        let text = self.read(path);
        assert!(text.contains(from), "{from} in {text}");
        self.write(path, &text.replace(from, to));
    }

    fn upgrade(&self, config: &Config) -> Vec<(String, Done)> {
        let would = upgrade(&self.folder, config, true).expect("dry run");
        let changes = upgrade(&self.folder, config, false).expect("upgraded");
        assert_eq!(would, changes, "a dry run tells the truth");
        changes
            .into_iter()
            .map(|change| (change.path, change.done))
            .collect()
    }

    /// What became of one file; all others were up to date.
    fn upgrade_of(&self, config: &Config, path: &str) -> Done {
        let mut changes = self.upgrade(config);
        let at = changes.iter().position(|(known, _)| known == path);
        let (_, done) = changes.swap_remove(at.expect(path));
        assert!(
            changes.iter().all(|(_, done)| *done == Done::Unchanged),
            "{changes:#?}"
        );
        done
    }

    /// Every file's content, the memory's too.
    fn everything(&self) -> Vec<(std::path::PathBuf, String)> {
        let mut open = vec![self.folder.clone()];
        let mut found = Vec::new();
        while let Some(path) = open.pop() {
            if path.is_dir() {
                let entries = fs::read_dir(&path).expect("folder");
                open.extend(entries.map(|entry| entry.expect("entry").path()));
            } else {
                found.push((path.clone(), fs::read_to_string(&path).expect("text")));
            }
        }
        found.sort();
        found
    }
}

#[test]
fn the_manifest_leads_to_this_relay() {
    let app = App::init(&config(&[
        URL,
        ("PUBLIC__BASE_PATH", "/gitlab/-/jira_connect"),
        ("INSTANCES__ALLOW", "gitlab.example.com"),
    ]));
    let manifest = app.read("manifest.yml");
    for line in [
        "    baseUrl: https://jira.example.com\n",
        "        path: /gitlab/-/jira_connect/forge/events\n",
        "        - address: https://gitlab.example.com\n",
    ] {
        assert!(manifest.contains(line), "{line} in {manifest}");
    }
    assert!(!manifest.contains("connectModules"));
    let page = app.read("page/index.html");
    assert!(
        page.contains(r#"data-base="/gitlab/-/jira_connect""#),
        "{page}"
    );
    assert!(app.read("README.md").contains("https://jira.example.com"));
    for (_, text) in app.everything() {
        assert!(!text.contains('%') || !text.contains("%PUBLIC_URL%"));
    }
}

#[test]
fn create_branch_leads_to_the_one_instance_that_every_site_has() {
    let one = App::init(&config(&[
        URL,
        ("INSTANCES__AUTO_LINK", "https://example.com/gitlab"),
    ]));
    let template = "https://example.com/gitlab/-/jira_connect/branches/new?issue_key={issue.key}&issue_summary={issue.summary}";
    assert!(one.read("manifest.yml").contains(template));
    for others in ["", "https://one.example.com,https://two.example.com"] {
        let app = App::init(&config(&[URL, ("INSTANCES__AUTO_LINK", others)]));
        let manifest = app.read("manifest.yml");
        assert!(!manifest.contains("urlTemplate"));
        assert!(manifest.contains("# There is no createBranch"));
    }
}

#[test]
fn an_old_connect_app_becomes_it_with_its_own_key_only() {
    let config = config(&[URL, ("APP__KEY", "gitlab-jira-connect-old.example.com")]);
    let parent = TempDir::new().expect("folder");
    let error = init(parent.path(), &config, Some("another")).expect_err("another key");
    assert!(error.to_string().contains("app.key"), "{error}");
    init(
        parent.path(),
        &config,
        Some("gitlab-jira-connect-old.example.com"),
    )
    .expect("made");
    let manifest = fs::read_to_string(parent.path().join("manifest.yml")).expect("manifest");
    for line in [
        "    key: gitlab-jira-connect-old.example.com\n",
        "    baseUrl: https://jira.example.com/-/jira_connect\n",
        "  jira:jiraDevelopmentTool:\n    - key: gitlab-development-tool\n",
        "      installed: /events/installed\n",
        "    - delete:connect-jira\n",
    ] {
        assert!(manifest.contains(line), "{line} in {manifest}");
    }
    // And stays one.
    let upgraded = upgrade(parent.path(), &config, false).expect("upgraded");
    assert!(upgraded.iter().all(|change| change.done == Done::Unchanged));
}

#[test]
fn nothing_is_written_over_what_is_there() {
    let parent = TempDir::new().expect("folder");
    fs::write(parent.path().join("mine"), "mine").expect("file");
    let config = config(&[URL]);
    let error = init(parent.path(), &config, None).expect_err("not empty");
    assert!(matches!(error, FolderError::NotEmpty(_)), "{error}");
    let error = upgrade(parent.path(), &config, false).expect_err("not ours");
    assert!(matches!(error, FolderError::NotMade(_)), "{error}");
    assert_eq!(fs::read_dir(parent.path()).expect("folder").count(), 1);

    let app = App::init(&config);
    let error = init(&app.folder, &config, None).expect_err("made already");
    assert!(matches!(error, FolderError::MadeAlready(_)), "{error}");

    let new = parent.path().join("new");
    for (settings, said) in [
        (vec![("PUBLIC__URL", "http://127.0.0.1:8080")], "by https"),
        (Vec::new(), "still the placeholder"),
    ] {
        let error = init(&new, &self::config(&settings), None).expect_err(said);
        assert!(error.to_string().contains(said), "{error}");
        assert!(!new.exists());
    }
}

#[test]
fn a_dry_run_changes_nothing() {
    let app = App::init(&config(&[URL]));
    app.edit("manifest.yml", "title: ", "title: My ");
    let before = app.everything();
    let news = config(&[URL, ("APP__VENDOR_URL", "https://vendor.example.com")]);
    let changes = upgrade(&app.folder, &news, true).expect("dry run");
    assert!(changes.iter().any(|change| change.done == Done::Merged));
    assert_eq!(app.everything(), before);
}

#[test]
fn what_was_edited_gets_only_the_news() {
    let app = App::init(&config(&[URL]));
    // What `forge register` does, and a person.
    let id = "ari:cloud:ecosystem::app/8db33809-1f32-48bb-8c52-5877dab48107";
    app.edit("manifest.yml", UNREGISTERED, id);
    app.edit("manifest.yml", "interval: hour", "interval: fiveMinute");
    assert_eq!(app.upgrade_of(&config(&[URL]), "manifest.yml"), Done::Kept);

    let news = [
        URL,
        ("FORGE__APP_ID", id),
        ("INSTANCES__ALLOW", "gitlab.example.com"),
    ];
    assert_eq!(app.upgrade_of(&config(&news), "manifest.yml"), Done::Merged);
    let manifest = app.read("manifest.yml");
    for line in [
        &format!("  id: {id}\n"),
        "      interval: fiveMinute\n",
        "        - address: https://gitlab.example.com\n",
    ] {
        assert!(manifest.contains(line), "{line} in {manifest}");
    }
    assert_eq!(app.upgrade_of(&config(&news), "manifest.yml"), Done::Kept);

    // What nobody edited is simply replaced.
    let moved = [URL, ("PUBLIC__BASE_PATH", "/gitlab/-/jira_connect")];
    let changes = app.upgrade(&config(&moved));
    let page = ("page/index.html".to_owned(), Done::Updated);
    assert!(changes.contains(&page), "{changes:#?}");
}

#[test]
fn where_edits_and_news_meet_both_are_kept() {
    let app = App::init(&config(&[URL]));
    app.edit(
        "manifest.yml",
        "  - key: relay\n    baseUrl: https://jira.example.com",
        "  - key: relay\n    baseUrl: https://mine.example.com",
    );
    let edited = app.read("manifest.yml");
    let moved = config(&[("PUBLIC__URL", "https://new.example.com")]);
    let done = |changes: Vec<(String, Done)>| {
        let found = changes.into_iter().find(|(path, _)| path == "manifest.yml");
        found.expect("manifest").1
    };
    assert_eq!(done(app.upgrade(&moved)), Done::Conflict);
    assert_eq!(app.read("manifest.yml"), edited);
    let offered = app.read("manifest.yml.new");
    assert!(offered.contains("    baseUrl: https://new.example.com\n"));
    // Until somebody has looked at it.
    assert_eq!(done(app.upgrade(&moved)), Done::Conflict);
    fs::remove_file(app.folder.join("manifest.yml.new")).expect("deleted");
    assert_eq!(done(app.upgrade(&moved)), Done::Kept);
    assert_eq!(app.read("manifest.yml"), edited);

    // Solved in the other way, the file beside it goes by itself.
    let again = config(&[("PUBLIC__URL", "https://newer.example.com")]);
    assert_eq!(done(app.upgrade(&again)), Done::Conflict);
    app.write("manifest.yml", &app.read("manifest.yml.new"));
    assert_eq!(done(app.upgrade(&again)), Done::Unchanged);
    assert!(!app.folder.join("manifest.yml.new").exists());

    // A script of the page can't be merged line by line.
    app.write("page/page.js", "mine");
    let memory = app.read(".jira-connect-proxy.json");
    let page = app.everything();
    let other = memory.replace(
        &crate::digest::sha256_hex(&Page::get("page.js").expect("page").data),
        &crate::digest::sha256_hex(b"older"),
    );
    app.write(".jira-connect-proxy.json", &other);
    assert_eq!(app.upgrade_of(&again, "page/page.js"), Done::Conflict);
    assert_eq!(app.read("page/page.js"), "mine");
    assert_eq!(app.everything().len(), page.len() + 1);
}

#[test]
fn a_file_in_the_way_stops_everything() {
    let app = App::init(&config(&[URL]));
    app.edit("manifest.yml", "title: ", "title: My ");
    app.write("manifest.yml.new", "mine too");
    let before = app.everything();
    let moved = config(&[("PUBLIC__URL", "https://new.example.com")]);
    let error = upgrade(&app.folder, &moved, false).expect_err("in the way");
    assert!(matches!(error, FolderError::InTheWay(_)), "{error}");
    assert_eq!(app.everything(), before);
}

#[test]
fn what_was_deleted_stays_away_and_what_is_no_more_goes() {
    let app = App::init(&config(&[URL]));
    fs::remove_file(app.folder.join("package.json")).expect("deleted");
    assert_eq!(
        app.upgrade_of(&config(&[URL]), "package.json"),
        Done::StaysDeleted
    );
    assert!(!app.folder.join("package.json").exists());

    // Files that an older program had made.
    let memory = app.read(".jira-connect-proxy.json");
    let mut memory: serde_json::Value = serde_json::from_str(&memory).expect("JSON");
    for name in ["old.js", "edited.js"] {
        app.write(name, name);
        let digest = crate::digest::sha256_hex(b"old.js");
        memory["files"][name] = serde_json::json!({"generated": {"sha256": digest}});
    }
    app.write(".jira-connect-proxy.json", &memory.to_string());
    let changes = app.upgrade(&config(&[URL]));
    assert!(changes.contains(&("old.js".to_owned(), Done::Removed)));
    assert!(changes.contains(&("edited.js".to_owned(), Done::Orphaned)));
    assert!(!app.folder.join("old.js").exists());
    assert_eq!(app.read("edited.js"), "edited.js");
}
