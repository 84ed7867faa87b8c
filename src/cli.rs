//! The command line: what can be said, and the commands that speak to a running relay.
//!
//! The store belongs to one process, so commands go through the admin API of the relay that runs; only those go without
//! that need none: `serve`, `check`, `restore`, `forge`, `completions`, `man`. What `--json` prints is what that API
//! answers.

mod api;
mod audit;
mod backup;
mod doctor;
mod forge;
mod gitlab_database;
mod health;
mod import_gitlab;
mod installations;
mod keys;
mod links;
mod page;
mod print;
mod spool;
mod status;
mod trace;

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use jira_connect_proxy::config::Config;

use api::Api;

/// Relay between one GitLab for Jira Cloud app and many self-managed GitLab instances.
#[derive(Debug, Parser)]
#[command(
    name = "jira-connect-proxy",
    version,
    after_help = "Examples:
  jira-connect-proxy                             run with ./proxy.toml, or with the built-in defaults on loopback
  jira-connect-proxy serve --config proxy.toml   run with this configuration
  jira-connect-proxy check --config proxy.toml   tell every mistake in it, start nothing
  jira-connect-proxy status                      how the running relay is
  jira-connect-proxy links add https://gitlab.example.com

Every setting can also come from the environment:
  JIRA_CONNECT_PROXY__PUBLIC__URL=https://relay.example.com jira-connect-proxy

Exit codes: 0 success, 64 bad configuration or arguments, 1 anything else."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) source: Source,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Where the settings come from.
#[derive(Debug, Args)]
pub(crate) struct Source {
    /// Configuration file; the one at the repository's root is commented and holds every default.
    ///
    /// Without it, ./proxy.toml is read if it is there, else /etc/jira-connect-proxy/proxy.toml if that is.
    #[arg(
        long,
        short,
        global = true,
        value_name = "FILE",
        env = "JIRA_CONNECT_PROXY_CONFIG"
    )]
    pub(crate) config: Option<PathBuf>,
}

/// How to reach the relay that runs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Running relay")]
pub(crate) struct Remote {
    /// Its admin listener, like `http://127.0.0.1:9090` or `unix:/run/jira-connect-proxy/admin.sock`. Without it,
    /// `admin.socket` of the configuration, else `admin.listen`.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "JIRA_CONNECT_PROXY_ADMIN_URL"
    )]
    admin_url: Option<String>,
    /// File with its admin token. Without it, `admin.token_file` of the configuration.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "JIRA_CONNECT_PROXY_ADMIN_TOKEN_FILE"
    )]
    admin_token_file: Option<PathBuf>,
    /// PEM file with the certificate authorities of an admin listener with TLS. Without it, the system's.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "JIRA_CONNECT_PROXY_ADMIN_CA"
    )]
    admin_ca: Option<PathBuf>,
    /// PEM file with the certificate to show there, if `admin.client_ca_file` asks for one.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        requires = "admin_key",
        env = "JIRA_CONNECT_PROXY_ADMIN_CERT"
    )]
    admin_cert: Option<PathBuf>,
    /// PEM file with the key of that certificate.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        requires = "admin_cert",
        env = "JIRA_CONNECT_PROXY_ADMIN_KEY"
    )]
    admin_key: Option<PathBuf>,
    /// The admin token itself; only from the environment, because arguments can be seen by every user.
    #[arg(skip = std::env::var("JIRA_CONNECT_PROXY_ADMIN_TOKEN").ok())]
    admin_token: Option<String>,
    /// Print what the admin API answers, for machines.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the relay (the default).
    ///
    /// SIGTERM and SIGINT stop it in order. SIGHUP reads `[instances]`, the TLS files and the admin token again; other
    /// settings need a restart.
    #[command(after_help = "Examples:
  jira-connect-proxy serve
  jira-connect-proxy serve --config /etc/jira-connect-proxy/proxy.toml")]
    Serve,
    /// Read the configuration, tell every mistake and every warning, start nothing.
    #[command(after_help = "Examples:
  jira-connect-proxy check
  jira-connect-proxy check --config /etc/jira-connect-proxy/proxy.toml")]
    Check,
    /// Ask the running relay whether it is well; needs no token.
    ///
    /// For what watches a container: exits with 1 if it does not answer, and with `--ready` also if it can't do its
    /// work, for example because its disk is full.
    #[command(after_help = "Examples:
  jira-connect-proxy health
  jira-connect-proxy health --ready
  jira-connect-proxy health --admin-url http://127.0.0.1:9180")]
    Health {
        /// Whether it has a signing key and its store takes a test write. Each such question writes to the disk.
        #[arg(long)]
        ready: bool,
    },
    /// Show how the running relay is, on one screen.
    ///
    /// Listeners, store, signing key, links by state, what waits for Jira, and what fails. Exits with 1 if the relay
    /// is not ready.
    #[command(after_help = "Examples:
  jira-connect-proxy status
  jira-connect-proxy status --json
  jira-connect-proxy status --admin-url http://127.0.0.1:9180
  jira-connect-proxy status --admin-url unix:/run/jira-connect-proxy/admin.sock
  jira-connect-proxy status --admin-url https://relay.internal:9090 --admin-ca ca.pem --admin-cert me.pem --admin-key me-key.pem")]
    Status,
    /// List the Jira sites, and add, move and remove them.
    #[command(after_help = "Examples:
  jira-connect-proxy installations
  jira-connect-proxy installations --json
  jira-connect-proxy installations add-oauth --site acme.atlassian.net --client-id 2mCfO6a9Kx --client-secret-file secret.txt
  jira-connect-proxy installations remove acme.atlassian.net
  jira-connect-proxy installations move acme.atlassian.net --to forge --dry-run")]
    Installations {
        #[command(subcommand)]
        command: Option<installations::Command>,
    },
    /// Print an address that opens the page of a Jira site outside Jira, once and soon (`page.invitation_secs`).
    ///
    /// For operators, and for sites whose Jira has no page of the app. Whoever opens the address can do there what an
    /// admin of that site can, until they log out or the session is over; the relay answers for them to the site's
    /// instances, without asking Jira. So give it to nobody else. The audit trail has the invitation, its opening and
    /// every change.
    #[command(after_help = "Examples:
  jira-connect-proxy page acme.atlassian.net
  jira-connect-proxy page 6f0ae1e0-6b0f-4c2b-9a48-4c6f6e2a1c11
  jira-connect-proxy page acme.atlassian.net --json")]
    Page {
        /// The Jira site: its client key or address.
        installation: String,
    },
    /// See and change which GitLab instances are linked to which Jira site.
    #[command(subcommand)]
    Links(links::Command),
    /// See and replace the signing keys.
    #[command(subcommand)]
    Keys(keys::Command),
    /// See what waits for Jira, and send it now.
    #[command(subcommand)]
    Spool(spool::Command),
    /// Show who changed what, newest first.
    #[command(after_help = "Examples:
  jira-connect-proxy audit
  jira-connect-proxy audit --limit 1000 --json
  jira-connect-proxy audit verify")]
    #[command(args_conflicts_with_subcommands = true)]
    Audit {
        /// How many entries, 1 to 10000.
        #[arg(long, default_value_t = 50)]
        limit: usize,
        #[command(subcommand)]
        command: Option<audit::Command>,
    },
    /// Show what happened to one request or delivery, hop by hop.
    ///
    /// The id stands in the log, in every answer (`x-request-id`, and `id` of an error), in `last_error` of a link, in
    /// the audit trail, and in what `status` lists. Shows the token's claims and whether each held, whom the relay
    /// called and what they said, what waited, what was delivered because of it. Never a token or a secret. What is
    /// long ago is not remembered; `telemetry.trace_max_bytes` is the room.
    #[command(after_help = "Examples:
  jira-connect-proxy trace 12abe4c6856c4f72bdeb32d7885d4c28
  jira-connect-proxy trace 12abe4c6856c4f72bdeb32d7885d4c28 --json")]
    Trace {
        /// Of a request, a delivery attempt, or a W3C trace.
        id: String,
    },
    /// Find out what ails an instance, or the relay itself, and what to do about it.
    ///
    /// Walks the ladder from the name to the traffic by the same ways that deliveries take: address policy, DNS, TCP,
    /// TLS, HTTP, is it GitLab, does it know itself by this address, clocks, Jira Connect Proxy URL, does it fetch the
    /// relay's key and believe it, OAuth application, secret, traffic. Without an address it looks at the relay: public
    /// URL, Atlassian's key server, clock, signing key, store, disk. Exits with 1 if anything is broken.
    #[command(after_help = "Examples:
  jira-connect-proxy doctor                                the relay itself
  jira-connect-proxy doctor https://gitlab.example.com     one instance, linked or not
  jira-connect-proxy doctor --all                          the relay and every linked instance")]
    Doctor {
        /// The address of the instance.
        instance_url: Option<String>,
        /// The relay and every linked instance.
        #[arg(long)]
        all: bool,
    },
    /// Write everything that the relay keeps into one sealed file, while it runs.
    ///
    /// The file holds the store as it was at one moment, with the writes that wait for Jira. It opens only with the store
    /// key (`store.key_file`), which is not in it: keep that elsewhere.
    #[command(after_help = "Examples:
  jira-connect-proxy backup /var/backups/jira-connect-proxy/2026-11-26.backup
  jira-connect-proxy restore --verify /var/backups/jira-connect-proxy/2026-11-26.backup")]
    Backup {
        /// Where to. A file that is there is never replaced.
        file: PathBuf,
    },
    /// Make a store from a backup, or prove that one could be made.
    ///
    /// Works without a relay, as its user. A store that is there is never replaced. Instances may have been told other
    /// secrets since the backup was made, so the relay tells them all again once it is started.
    #[command(after_help = "Examples:
  jira-connect-proxy restore --verify relay.backup                      prove it, touch nothing
  jira-connect-proxy restore relay.backup --config proxy.toml           make the store that the configuration names
  jira-connect-proxy restore relay.backup --key-file store-key.retired-20261126T000000Z")]
    Restore(backup::Restore),
    /// Give the store a new key, while the relay runs.
    ///
    /// Everything in the store is sealed anew. The old key stays beside the new one for the backups that need it. When it
    /// is cut, nothing is lost: run it again, or start the relay again. What the old key sealed may linger in freed
    /// space of the disk: if the old key leaked, replace the secrets too (`links resend`, `keys rotate`, and update the
    /// app in Jira).
    #[command(after_help = "Examples:
  jira-connect-proxy reseal")]
    Reseal,
    /// Take over the Jira sites of a GitLab that was the proxy so far, from an export of its database.
    ///
    /// Shows what would be done; --apply does it. Each site becomes an installation with the secret that Jira signs with
    /// today, and the instance that the GitLab passed it on to is linked with its ids in Jira as they are. Rows of sites
    /// that the GitLab served itself get no link, unless --own-instance says where that GitLab answers. What is known
    /// already is left as it is, so a second run changes nothing. Either all rows are taken or none.
    ///
    /// --rollback forgets what an import made and nobody changed since. An instance that has heard of it gets Jira's own
    /// secret and address again, as the GitLab had given them, and keeps its linked groups. Exits with 1 if rows were
    /// refused and nothing was done.
    #[command(after_help = "The export, on the GitLab:
  gitlab-psql -c \"\\copy jira_connect_installations to '/tmp/installations.csv' csv header\"

Examples:
  jira-connect-proxy import-gitlab installations.csv
  jira-connect-proxy import-gitlab installations.csv --db-key-base-file gitlab-secrets.json --apply
  jira-connect-proxy import-gitlab --database postgresql:///gitlabhq_production?host=/var/opt/gitlab/postgresql
  jira-connect-proxy import-gitlab installations.csv --own-instance https://gitlab-itself.example.com --apply
  jira-connect-proxy import-gitlab --rollback 5f7f3f5e-6f0e-4a53-a7a6-3c1c1a0c5a51 --apply")]
    ImportGitlab(import_gitlab::ImportGitlab),
    /// Make the Forge app through which new Jira sites reach this relay, and keep it up to date.
    #[command(subcommand)]
    Forge(forge::Command),
    /// Print a script that completes commands in a shell.
    #[command(after_help = "Examples:
  jira-connect-proxy completions bash > /etc/bash_completion.d/jira-connect-proxy
  jira-connect-proxy completions zsh > ~/.zfunc/_jira-connect-proxy
  jira-connect-proxy completions fish > ~/.config/fish/completions/jira-connect-proxy.fish")]
    Completions {
        /// For which shell.
        shell: Shell,
    },
    /// Print the manual page.
    #[command(after_help = "Examples:
  jira-connect-proxy man > /usr/local/share/man/man1/jira-connect-proxy.1")]
    Man,
}

impl Command {
    /// Whether it needs no configuration.
    pub(crate) fn prints_itself(&self) -> bool {
        matches!(self, Self::Completions { .. } | Self::Man)
    }
}

/// Prints a script or a page about the command line itself.
pub(crate) fn print_itself(command: &Command) -> io::Result<()> {
    let mut program = Arguments::command();
    let mut out = io::stdout().lock();
    match command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut program, "jira-connect-proxy", &mut script);
            out.write_all(&script)
        }
        _ => manual(program, &mut out),
    }
}

/// One page with every command: a page for each would have to be found first.
fn manual(program: clap::Command, out: &mut impl io::Write) -> io::Result<()> {
    let mut program = program.disable_help_subcommand(true);
    program.build();
    let page = clap_mangen::Man::new(program.clone());
    page.render_title(out)?;
    page.render_name_section(out)?;
    page.render_synopsis_section(out)?;
    page.render_description_section(out)?;
    page.render_options_section(out)?;
    writeln!(out, ".SH COMMANDS")?;
    describe(&program, out)?;
    page.render_extra_section(out)?;
    page.render_version_section(out)
}

fn describe(parent: &clap::Command, out: &mut impl io::Write) -> io::Result<()> {
    for command in parent
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
    {
        let page = clap_mangen::Man::new(command.clone());
        let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
        writeln!(out, ".SS {}", name.replace('-', "\\-"))?;
        // Sections of a command's own page stand one level deeper here.
        let mut text = Vec::new();
        page.render_description_section(&mut text)?;
        page.render_extra_section(&mut text)?;
        for line in String::from_utf8_lossy(&text).lines() {
            match line.strip_prefix(".SH ") {
                Some("DESCRIPTION") => {}
                Some(_) => writeln!(out, ".PP")?,
                None => writeln!(out, "{line}")?,
            }
        }
        describe(command, out)?;
    }
    Ok(())
}

/// Runs a command against the relay that runs.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn run(
    command: Command,
    remote: &Remote,
    config: &Config,
) -> anyhow::Result<bool> {
    let json = remote.json;
    if let Command::Health { ready } = command {
        return health::ask(remote, config, ready).await;
    }
    if let Command::Restore(wish) = command {
        return backup::restore(wish, config, json).await;
    }
    if let Command::Forge(command) = command {
        return forge::run(command, config, json);
    }
    let api = Api::new(remote, config)?;
    match command {
        Command::Status => status::show(&api, json).await,
        Command::Installations { command } => installations::run(command, &api, json).await,
        Command::Page { installation } => page::invite(&api, &installation, json).await,
        Command::Links(command) => links::run(command, &api, json).await,
        Command::Keys(command) => keys::run(command, &api, json).await,
        Command::Spool(command) => spool::run(command, &api, json).await,
        Command::Audit { limit, command } => audit::run(command, limit, &api, json).await,
        Command::Trace { id } => trace::show(&api, &id, json).await,
        Command::ImportGitlab(command) => import_gitlab::run(command, &api, json).await,
        Command::Doctor { instance_url, all } => {
            doctor::run(&api, instance_url.as_deref(), all, json).await
        }
        Command::Backup { file } => backup::backup(&api, &file, json).await,
        Command::Reseal => backup::reseal(&api, json).await,
        Command::Serve
        | Command::Check
        | Command::Health { .. }
        | Command::Completions { .. }
        | Command::Forge(_)
        | Command::Man
        | Command::Restore(_) => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_teaches_by_examples() {
        fn look(command: &clap::Command) {
            let leaf = command.get_subcommands().next().is_none();
            let help = command.get_after_help().map(ToString::to_string);
            assert!(
                !leaf || help.is_some_and(|help| help.contains("Examples:")),
                "{} has no examples",
                command.get_name()
            );
            command.get_subcommands().for_each(look);
        }
        Arguments::command().get_subcommands().for_each(look);
    }

    #[test]
    fn the_manual_has_every_command() {
        let mut page = Vec::new();
        manual(Arguments::command(), &mut page).expect("page");
        let page = String::from_utf8(page).expect("text");
        for command in ["links add", "keys rotate", "spool retry", "status"] {
            let name = format!(".SS jira\\-connect\\-proxy {command}");
            assert!(page.contains(&name), "{name} in {page}");
        }
    }
}
