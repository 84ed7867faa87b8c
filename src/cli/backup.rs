//! `backup`, `restore`, `reseal`: what is done with the store as a whole.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use http::Method;
use http_body_util::BodyExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use jira_connect_proxy::{
    clock,
    config::Config,
    domain::{Actor, AuditEntry},
    linking,
    metrics::Metrics,
    secret_file::folder_of,
    store::{
        BackupContents, BackupFile, BackupHeader, BackupReader, ResealProgress, Restored, read_key,
    },
};
use serde_json::json;

use super::{
    api::{Api, parsed},
    print,
};

/// Between two parts of a backup.
const PATIENCE: Duration = Duration::from_secs(60);

/// Links that share one sync.
const LINKS_AT_ONCE: usize = 500;

/// What to restore.
#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// The backup.
    file: PathBuf,
    /// Only prove that it is whole, opens, and holds what a relay can use. Touches nothing.
    #[arg(long)]
    verify: bool,
    /// The store key that was in use when the backup was made. Without it, `store.key_file` of the configuration.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// Writes a backup beside its place and puts it there when it is whole.
pub(super) async fn backup(api: &Api, file: &Path, json: bool) -> anyhow::Result<bool> {
    anyhow::ensure!(
        !file.exists(),
        "{} exists, and a backup never replaces a file: choose another name",
        file.display()
    );
    let mut partial = file.as_os_str().to_owned();
    partial.push(format!(".partial-{}", std::process::id()));
    let partial = PathBuf::from(partial);
    let header = fetch(api, &partial).await.inspect_err(|_| {
        let _ = fs::remove_file(&partial);
    })?;
    let place = || -> io::Result<u64> {
        // A rename would replace what came there meanwhile.
        let linked = fs::hard_link(&partial, file);
        fs::remove_file(&partial)?;
        linked?;
        File::open(folder_of(file))?.sync_all()?;
        Ok(fs::metadata(file)?.len())
    };
    let bytes = place().with_context(|| format!("{} can't be written", file.display()))?;
    if json {
        print::json(&json!({
            "file": file,
            "bytes": bytes,
            "created_at": header.created_at,
            "schema": header.schema,
            "records": header.records,
        }))?;
        return Ok(true);
    }
    print::line(format!(
        "{} holds {} records as of {} ({}); it opens only with the store key, so keep that elsewhere",
        file.display(),
        header.records,
        print::time(header.created_at),
        print::bytes(bytes),
    ))?;
    print::line(format!(
        "prove it with: jira-connect-proxy restore --verify {}",
        file.display()
    ))?;
    Ok(true)
}

async fn fetch(api: &Api, partial: &Path) -> anyhow::Result<BackupHeader> {
    let mut body = api.download("/api/v1/backup").await?;
    let write = || format!("{} can't be written", partial.display());
    let mut out = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(partial)
        .with_context(write)?;
    let progress = ProgressBar::new_spinner().with_style(style("{spinner} {bytes} {elapsed}"));
    let silent = || format!("the relay said nothing for {} s", PATIENCE.as_secs());
    while let Some(frame) = tokio::time::timeout(PATIENCE, body.frame())
        .await
        .with_context(silent)?
    {
        let frame = frame.context("the backup broke off: see the relay's log")?;
        if let Some(data) = frame.data_ref() {
            out.write_all(data).with_context(write)?;
            progress.inc(data.len() as u64);
        }
    }
    out.sync_all().with_context(write)?;
    progress.finish_and_clear();
    let written = BufReader::new(File::open(partial).with_context(write)?);
    BackupFile::open(written)
        .and_then(BackupFile::check)
        .context("the backup did not arrive whole")
}

/// Works on files alone: there is no relay yet.
pub(super) async fn restore(wish: Restore, config: &Config, json: bool) -> anyhow::Result<bool> {
    let name = wish.file.display().to_string();
    let backup = open(&wish, config).with_context(|| name.clone())?;
    let header = backup.header().clone();
    if wish.verify {
        let contents = backup.verify().with_context(|| name.clone())?;
        return tell_contents(&name, &header, &contents, json);
    }
    let progress = ProgressBar::new(header.records)
        .with_style(style("{bar:40} {pos} of {len} records {elapsed}"));
    let store = config.store.clone();
    let restored = Restored::fill(backup, &store, |records| progress.set_position(records))
        .with_context(|| name.clone())?;
    progress.finish_and_clear();
    let links = deliver_again(&restored, &header).await?;
    restored.finish()?;
    if json {
        print::json(&json!({"store": config.store.path, "delivered_again": links}))?;
        return Ok(true);
    }
    print::line(format!(
        "{} is restored as of {}; start the relay, and it gives {links} links fresh secrets",
        config.store.path.display(),
        print::time(header.created_at),
    ))?;
    print::line(
        "Jira may have renewed a site's secret since: if its calls fail then, update or reinstall the app there",
    )?;
    Ok(true)
}

fn open(wish: &Restore, config: &Config) -> anyhow::Result<BackupReader<Watched>> {
    let key_file = wish.key_file.as_ref().unwrap_or(&config.store.key_file);
    let key = read_key(key_file)?.with_context(|| {
        format!(
            "the key file {} does not exist: give the store key that was in use when the backup was made with --key-file",
            key_file.display()
        )
    })?;
    let file = File::open(&wish.file)?;
    let bytes = file.metadata()?.len();
    let progress = if wish.verify {
        ProgressBar::new(bytes).with_style(style("{bar:40} {bytes} of {total_bytes} {elapsed}"))
    } else {
        ProgressBar::hidden()
    };
    let watched = Watched {
        input: BufReader::new(file),
        progress,
    };
    Ok(BackupFile::open(watched)?.unlock(&key)?)
}

/// A file whose reading shows.
struct Watched {
    input: BufReader<File>,
    progress: ProgressBar,
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.progress.inc(read as u64);
        Ok(read)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.progress.finish_and_clear();
    }
}

fn tell_contents(
    name: &str,
    header: &BackupHeader,
    contents: &BackupContents,
    json: bool,
) -> anyhow::Result<bool> {
    if json {
        print::json(&json!({
            "created_at": header.created_at,
            "made_by": header.made_by,
            "schema": header.schema,
            "contents": contents,
        }))?;
        return Ok(true);
    }
    print::line(format!(
        "{name} is whole and opens: made on {} by version {}, schema {}",
        print::time(header.created_at),
        header.made_by,
        header.schema
    ))?;
    let rows = [
        ("Jira sites", contents.installations),
        ("links", contents.links),
        ("signing keys", contents.signing_keys),
        ("Atlassian's keys", contents.install_keys),
        ("writes that wait for Jira", contents.spooled_writes),
        ("audit entries", contents.audit_entries),
    ];
    let rows = rows.map(|(what, count)| [what.to_owned(), count.to_string()]);
    print::table(["what", "how many"], rows.to_vec(), "")?;
    if let Some(head) = &contents.audit_head {
        print::line(format!("audit head {head}"))?;
    }
    Ok(true)
}

/// What was said to instances since the backup was made is not known any more, so they all are told again.
async fn deliver_again(restored: &Restored, header: &BackupHeader) -> anyhow::Result<u64> {
    let owner = restored.open(Arc::new(Metrics::new()?))?;
    let store = owner.store().clone();
    let now = clock::now();
    let ids: Vec<_> = store.links().iter().map(|link| link.id).collect();
    let mut told = 0;
    for ids in ids.chunks(LINKS_AT_ONCE) {
        let ids = ids.to_vec();
        let change = store.transact(move |t| linking::deliver_again(t, &ids, now));
        told += change.await?;
    }
    store
        .record(AuditEntry {
            note: Some(format!("from a backup of {}", header.created_at)),
            ..AuditEntry::new(now, Actor::Admin, "store_restored")
        })
        .await?;
    tokio::task::spawn_blocking(move || owner.close()).await??;
    Ok(told)
}

/// Asks for page after page: what is done is done, whoever breaks off.
pub(super) async fn reseal(api: &Api, json: bool) -> anyhow::Result<bool> {
    let progress = ProgressBar::new_spinner()
        .with_style(style("{spinner} {pos} records sealed anew {elapsed}"));
    let last: ResealProgress = loop {
        let answer = api.call(Method::POST, "/api/v1/store/reseal", None).await?;
        let so_far: ResealProgress = parsed(answer)?;
        progress.set_position(so_far.sealed);
        if so_far.finished {
            break so_far;
        }
    };
    progress.finish_and_clear();
    if json {
        print::json(&serde_json::to_value(&last)?)?;
        return Ok(true);
    }
    print::line(format!(
        "the store has a new key: {} records were sealed anew",
        last.sealed
    ))?;
    if let Some(retired) = last.retired_key_file {
        print::line(format!(
            "the old one is now {}: backups made until now need it; delete it with the last of them",
            retired.display()
        ))?;
    }
    Ok(true)
}

fn style(template: &'static str) -> ProgressStyle {
    // The templates are ours; a wrong one would only look plain.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}
