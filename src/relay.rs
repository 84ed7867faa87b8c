//! One relay: builds every part once, in the order of dependence, binds both listeners, runs until told to stop.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::SignedDuration;
use ring::rand::{SecureRandom, SystemRandom};
use rustls::RootCertStore;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use crate::{
    access::{self, Access, AtlassianRanges, RangesError},
    acme::{self, Acme},
    admin::{Admin, AdminParts, Standing},
    client::{Client, DialSettings, certificates, root_certificates},
    clock,
    config::{Config, RangesSource},
    doctor::{self, Doctor},
    domain::{InstancePolicy, InstanceUrl},
    forge_sites::ForgeSites,
    forget,
    gitlab::{Asker, KeyFetches, Patience, Prober, deliver::Courier, probe::Verdict},
    jira::{Admins, Forwarder, Recogniser},
    jwt::{
        InstallKeys, InvocationVerifier, KeySet, Signer, crypto, install_keys::KeyNews,
        lifecycle::LifecycleVerifier,
    },
    linking::Linker,
    metrics::Metrics,
    reconcile::{Reconciler, realign},
    rotation::{KeyRotation, RotateError},
    rounds::Rounds,
    routes::{self, Public, PublicParts},
    secret_file::{self, SecretFileError},
    server::{Door, PerAddress, Server, Turning, UnixDoor, Workers},
    sessions::Sessions,
    sightings::{self, Sighting, Sightings},
    spool::{Spool, SpoolWorker},
    store::{OpenError, Store, StoreError, StoreOwner},
    tls::{TlsError, TlsFiles},
    trace::Traces,
};
#[cfg(feature = "otlp")]
use crate::{
    otlp::{self, Exporter, OtlpError},
    trace::Export,
};

/// How often changed TLS files are looked for.
const TLS_CHECK_EVERY: Duration = Duration::from_secs(30);

/// A relay with open sockets, ready to run.
pub struct Relay {
    store: StoreOwner,
    public_server: Server,
    admin_server: Server,
    admin_socket: Option<Server>,
    admin_tls: Option<Arc<TlsFiles>>,
    public: Arc<Public>,
    admin: Arc<Admin>,
    reconciler: Reconciler,
    spool_worker: SpoolWorker,
    sightings: Arc<Sightings>,
    sighted: tokio::sync::mpsc::Receiver<Sighting>,
    rotation: Arc<KeyRotation>,
    rounds: Arc<Rounds>,
    forge_sites: Option<Arc<ForgeSites>>,
    keep_uninstalled: SignedDuration,
    #[cfg(feature = "otlp")]
    exporter: Option<Exporter>,
    #[cfg(feature = "otlp")]
    drain_deadline: Duration,
    key_news: tokio::sync::mpsc::Receiver<KeyNews>,
    ranges: Option<Arc<AtlassianRanges>>,
    tls: Option<Arc<TlsFiles>>,
    acme: Option<Acme>,
    reload: Reload,
    addresses: Addresses,
    turning: Turning,
}

/// Where a relay listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// For Jira, instances and browsers.
    pub public: SocketAddr,
    /// For operators.
    pub admin: SocketAddr,
}

/// Takes a changed configuration in while the relay runs: `[instances]`, and the content of the TLS files.
#[derive(Clone)]
pub struct Reload {
    token: Arc<ArcSwap<Zeroizing<String>>>,
    token_file: PathBuf,
    store: Store,
    policy: Arc<ArcSwap<InstancePolicy>>,
    patience: Arc<ArcSwap<Patience>>,
    client: Client,
    public_url: Arc<str>,
    ranges: Option<Arc<AtlassianRanges>>,
    tls: Option<Arc<TlsFiles>>,
    admin_tls: Option<Arc<TlsFiles>>,
}

/// Why a relay does not start. Each is one sentence for an operator.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store, later.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The signing key.
    #[error("no signing key could be made: {0}")]
    Key(#[from] RotateError),
    /// The admin token.
    #[error("the admin token can't be used: {0}")]
    Token(#[from] SecretFileError),
    /// The admin token is unusable.
    #[error(
        "the admin token in {0} is shorter than 16 characters: remove the file to have one made"
    )]
    ShortToken(PathBuf),
    /// A port.
    #[error("can't listen on {address} ({key}): {cause}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Set by this key.
        key: &'static str,
        /// What the operating system said.
        cause: io::Error,
    },
    /// The admin listener's socket.
    #[error("can't listen on {path} (admin.socket): {cause}", path = .path.display())]
    BindSocket {
        /// Where.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// Who may connect to the admin listener.
    #[error("admin.client_ca_file {path} can't be used: {cause}", path = .path.display())]
    ClientCa {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// A listener's certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The collector of traces.
    #[cfg(feature = "otlp")]
    #[error(transparent)]
    Otlp(#[from] OtlpError),
    /// Atlassian's ranges in a file.
    #[error(transparent)]
    Ranges(#[from] RangesError),
    /// Certificate authorities.
    #[error("instances.extra_ca_file {path} can't be used: {cause}")]
    ExtraCa {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        cause: io::Error,
    },
    /// A mistake of ours.
    #[error("the relay can't be put together: {0}")]
    Internal(String),
}

impl StartError {
    /// Whether a setting, or a file that one names, is wrong.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Tls(_) | Self::Ranges(_) | Self::ExtraCa { .. } | Self::ClientCa { .. } => true,
            #[cfg(feature = "otlp")]
            Self::Otlp(_) => true,
            _ => false,
        }
    }
}

/// A part of the relay ended by itself; the log says which and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a part of the relay ended by itself, so the whole was stopped: see the log, and start it again"
)]
pub struct PartEnded;

impl Relay {
    /// Opens the store, makes what is missing, binds both listeners.
    pub async fn bind(config: Config) -> Result<Self, StartError> {
        crypto::install();
        let now = clock::now();
        let metrics = Arc::new(Metrics::new().map_err(internal)?);
        let tls = load_tls(&config)?.map(Arc::new);
        let client = Client::new(&dial_settings(&config)?);
        #[cfg(feature = "otlp")]
        let (export, exporter) = exporter(&config, &client, &metrics)?.unzip();
        #[cfg(not(feature = "otlp"))]
        let export = None;
        let trace_max_bytes = config.telemetry.trace_max_bytes;
        let traces = Arc::new(Traces::new(trace_max_bytes, export, now));
        let ranges = open_ranges(&config, &client, &metrics)?;
        let (admin_tls, admin_acceptor) = load_admin_tls(&config)?.unzip();
        let admin_tls = admin_tls.map(Arc::new);
        let public_listener = listen(config.public.listen, "public.listen").await?;
        let admin_listener = listen(config.admin.listen, "admin.listen").await?;
        let addresses = Addresses {
            public: public_listener.local_addr().map_err(internal)?,
            admin: admin_listener.local_addr().map_err(internal)?,
        };
        let admin_socket = config.admin.socket.as_ref();
        let admin_socket = admin_socket
            .map(|path| {
                UnixDoor::open(path, config.admin.socket_mode).map_err(|cause| {
                    StartError::BindSocket {
                        path: path.clone(),
                        cause,
                    }
                })
            })
            .transpose()?;
        let store_config = config.store.clone();
        let store_metrics = Arc::clone(&metrics);
        let owner = blocking(move || StoreOwner::open(&store_config, store_metrics)).await??;
        let store = owner.store().clone();
        let token = Arc::new(ArcSwap::from_pointee(admin_token(
            &config.admin.token_file,
        )?));

        let signer = Arc::new(Signer::default());
        let rotation = KeyRotation::start(
            store.clone(),
            Arc::clone(&signer),
            config.rotate_keys_after,
            now,
        )
        .await?;
        let rotation = Arc::new(rotation);
        let (install_keys, key_news) = InstallKeys::new(
            &config.jira.install_keys_url,
            client.clone(),
            store.install_keys(),
            Arc::clone(&metrics),
        )
        .await;
        let verifier = LifecycleVerifier::new(
            config.app_base_url(),
            config.public.base_path.clone(),
            install_keys,
        );
        let invocations = config.forge.clone().map(|forge| {
            InvocationVerifier::new(
                forge.app_id,
                forge.environments,
                config.jira.api_url.clone(),
                config.jira.sites.clone(),
                KeySet::new(&forge.jwks_url, client.clone(), Arc::clone(&metrics)),
            )
        });
        let policy = Arc::new(ArcSwap::from_pointee(config.instances.policy.clone()));
        let key_fetches = Arc::new(KeyFetches::default());
        let public_url: Arc<str> = config.public.url.as_str().into();
        let auto_link = config.instances.policy.auto_link.clone();
        realign(&store, &public_url, auto_link, now).await?;

        let patience = Arc::new(ArcSwap::from_pointee(Patience::from(&config.instances)));
        let courier = Courier {
            client: client.clone(),
            signer: Arc::clone(&signer),
            key_fetches: Arc::clone(&key_fetches),
            policy: Arc::clone(&policy),
            public_url: Arc::clone(&public_url),
            proxy_url: config.proxy_url().into(),
            patience: Arc::clone(&patience),
        };
        let reconciler = Reconciler {
            store: store.clone(),
            courier,
            patience: Arc::clone(&patience),
            secret_grace: config.jira.secret_grace,
            drain_deadline: config.limits.drain_deadline,
            metrics: Arc::clone(&metrics),
            traces: Arc::clone(&traces),
        };
        let forwarder = Arc::new(Forwarder::new(
            client.clone(),
            config.app.key.clone(),
            config.jira.sites.clone(),
            config.jira.api_url.clone(),
            config.jira.answer_timeout,
            Arc::clone(&metrics),
        ));
        let (spool, spool_worker) = Spool::new(
            store.clone(),
            Arc::clone(&forwarder),
            config.spool,
            config.limits.drain_deadline,
            Arc::clone(&metrics),
            Arc::clone(&traces),
        );
        let (sightings, sighted) = Sightings::new();
        let sightings = Arc::new(sightings);
        let sessions = Arc::new(Sessions::new(config.page.lifetimes).map_err(internal)?);
        let linker = Arc::new(Linker {
            store: store.clone(),
            policy: Arc::clone(&policy),
            client: client.clone(),
            app_base_url: config.app_base_url(),
            request_timeout: config.limits.request_timeout,
        });
        let prober = Prober {
            client: client.clone(),
            policy: Arc::clone(&policy),
            signer: Arc::clone(&signer),
            key_fetches: Arc::clone(&key_fetches),
            public_url: Arc::clone(&public_url),
            proxy_url: config.proxy_url().into(),
            redirect_uri: routes::redirect_uri(&config).into(),
            connect_timeout: config.instances.connect_timeout,
        };
        let asker = Asker::new(client.clone(), Arc::clone(&policy), Arc::clone(&metrics));
        let doctor = Arc::new(Doctor {
            prober: prober.clone(),
            asker: asker.clone(),
            client: client.clone(),
            store: store.clone(),
            signer: Arc::clone(&signer),
            app_base_url: config.app_base_url(),
            install_keys_url: config.jira.install_keys_url.clone(),
            key_set: invocations.as_ref().map(|verifier| verifier.keys().clone()),
            forwarder: Arc::clone(&forwarder),
            store_path: config.store.path.clone(),
            tls: tls.clone(),
        });
        let rounds = Arc::new(Rounds::new(
            Arc::clone(&doctor),
            store.clone(),
            config.instances.look_every,
            Arc::clone(&metrics),
        ));
        let admin_forwarder = Arc::clone(&forwarder);
        let forge_sites = config.forge.as_ref().map(|forge| {
            Arc::new(ForgeSites::new(
                forge,
                (store.clone(), Arc::clone(&forwarder), spool.clone()),
                Arc::clone(&policy),
                config.jira.sites.clone(),
                now,
            ))
        });
        let public = PublicParts {
            access: Access {
                jira: config.access.jira.clone(),
                instances: config.access.instances.clone(),
                ranges: ranges.clone(),
            },
            policy: Arc::clone(&policy),
            linker: Arc::clone(&linker),
            sessions: Arc::clone(&sessions),
            prober,
            admins: Admins::new(Arc::clone(&forwarder)),
            store: store.clone(),
            verifier,
            forge: invocations.zip(forge_sites.clone()),
            signer: Arc::clone(&signer),
            key_fetches,
            recogniser: Recogniser::new(store.clone(), Arc::clone(&metrics)),
            rounds: Arc::clone(&rounds),
            sightings: Arc::clone(&sightings),
            forwarder,
            spool: spool.clone(),
            asker,
            metrics: Arc::clone(&metrics),
            traces: Arc::clone(&traces),
        };
        let public = Public::new(&config, public).map_err(internal)?;
        let workers = Workers::start().map_err(internal)?;
        let turning = workers.turning();
        let admin = Admin::new(AdminParts {
            token: Arc::clone(&token),
            store: store.clone(),
            forwarder: admin_forwarder,
            signer,
            rotation: Arc::clone(&rotation),
            linker,
            sessions,
            sites: config.jira.sites.clone(),
            spool,
            doctor,
            rounds: Arc::clone(&rounds),
            standing: Standing {
                started_at: now,
                public_url: config.public.url.to_string(),
                public_listen: addresses.public.to_string(),
                admin_listen: addresses.admin.to_string(),
                store_path: config.store.path.display().to_string(),
            },
            workers: turning.clone(),
            limits: config.limits,
            metrics: Arc::clone(&metrics),
            traces,
        })
        .map_err(internal)?;
        let acme = tls.as_ref().zip(config.public.acme.clone());
        let acme = acme.map(|(tls, acme)| {
            let host = config.public.url.host();
            Acme::new(
                acme,
                host,
                client.clone(),
                Arc::clone(tls),
                Arc::clone(&metrics),
            )
        });
        Ok(Self {
            acme,
            public_server: Server {
                name: "public",
                door: Door::Tcp(public_listener),
                tls: tls.as_ref().map(|tls| tls.acceptor()),
                limits: config.limits,
                per_address: config
                    .limits
                    .connections_per_address_max
                    .map(|max| PerAddress {
                        max,
                        exempt: config.public.trusted_proxies.clone(),
                    }),
                workers: Some(workers),
                metrics: Arc::clone(&metrics),
            },
            admin_server: Server {
                name: "admin",
                door: Door::Tcp(admin_listener),
                tls: admin_acceptor,
                limits: config.limits,
                per_address: None,
                workers: None,
                metrics: Arc::clone(&metrics),
            },
            admin_socket: admin_socket.map(|door| Server {
                name: "admin_socket",
                door: Door::Unix(door),
                tls: None,
                limits: config.limits,
                per_address: None,
                workers: None,
                metrics,
            }),
            reload: Reload {
                token,
                token_file: config.admin.token_file.clone(),
                store,
                policy,
                patience,
                client,
                public_url,
                ranges: ranges.clone(),
                tls: tls.clone(),
                admin_tls: admin_tls.clone(),
            },
            admin_tls,
            store: owner,
            public: Arc::new(public),
            admin: Arc::new(admin),
            reconciler,
            spool_worker,
            sightings,
            sighted,
            rotation,
            rounds,
            forge_sites,
            keep_uninstalled: config.jira.keep_uninstalled,
            #[cfg(feature = "otlp")]
            exporter,
            #[cfg(feature = "otlp")]
            drain_deadline: config.limits.drain_deadline,
            key_news,
            ranges,
            tls,
            addresses,
            turning,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// For whoever watches it.
    pub fn turning(&self) -> Turning {
        self.turning.clone()
    }

    /// For whoever hears SIGHUP.
    pub fn reload(&self) -> Reload {
        self.reload.clone()
    }

    /// Runs until `shutdown`; then drains the listeners, lets deliveries in flight end, and closes the store.
    ///
    /// # Errors
    /// A part ended by itself. The others are stopped in order all the same: a relay that answers but does not
    /// deliver is worse than one that is down and restarted.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), PartEnded> {
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            public.listen = %self.addresses.public,
            admin.listen = %self.addresses.admin,
            "running"
        );
        let (stop, stopping) = watch::channel(false);
        let stopped = || {
            let mut stopping = stopping.clone();
            async move {
                // An error means that the sender is gone, which is a stop too.
                let _ = stopping.wait_for(|stop| *stop).await;
            }
        };
        let mut tasks = JoinSet::new();
        let public = self.public;
        tasks.spawn(self.public_server.run(
            move |request, peer| Arc::clone(&public).serve(request, peer),
            stopped(),
        ));
        let admin = self.admin;
        if let Some(server) = self.admin_socket {
            let admin = Arc::clone(&admin);
            tasks.spawn(server.run(
                move |request, peer| Arc::clone(&admin).serve(request, peer),
                stopped(),
            ));
        }
        tasks.spawn(self.admin_server.run(
            move |request, peer| Arc::clone(&admin).serve(request, peer),
            stopped(),
        ));
        tasks.spawn(self.reconciler.run(stopped()));
        tasks.spawn(self.spool_worker.run(stopped()));
        tasks.spawn(sightings::keep(
            self.reload.store.clone(),
            self.sightings,
            self.sighted,
            stopped(),
        ));
        tasks.spawn(forget::run(
            self.reload.store.clone(),
            self.keep_uninstalled,
            stopped(),
        ));
        tasks.spawn(self.rounds.run(stopped()));
        if let Some(forge_sites) = self.forge_sites {
            tasks.spawn(forge_sites.run(stopped()));
        }
        let (rotation, until) = (self.rotation, stopped());
        tasks.spawn(async move { rotation.run(until).await });
        tasks.spawn(keep_install_keys(
            self.reload.store.clone(),
            self.key_news,
            stopped(),
        ));
        #[cfg(feature = "otlp")]
        if let Some(exporter) = self.exporter {
            tasks.spawn(exporter.run(stopped(), self.drain_deadline));
        }
        let (watched, until) = (self.reload.store.clone(), stopped());
        tasks.spawn(async move {
            tokio::select! {
                () = watched.ended() => tracing::error!("the store has ended by itself"),
                () = until => {}
            }
        });
        if let Some(ranges) = self.ranges {
            let until = stopped();
            tasks.spawn(async move { ranges.run(until).await });
        }
        for tls in [self.tls, self.admin_tls].into_iter().flatten() {
            tasks.spawn(watch_tls(tls, stopped()));
        }
        if let Some(acme) = self.acme {
            tasks.spawn(acme.run(stopped()));
        }
        drop(self.reload);
        let mut ended = tokio::select! {
            () = shutdown => None,
            ended = tasks.join_next() => ended,
        };
        let mut failed = ended.is_some();
        tracing::info!(
            "stopping: no new connections, requests and deliveries in flight may finish"
        );
        stop.send_replace(true);
        if ended.is_none() {
            ended = tasks.join_next().await;
        }
        while let Some(result) = ended {
            if let Err(panic) = result {
                tracing::error!("a part of the relay had panicked: {panic}");
                failed = true;
            }
            ended = tasks.join_next().await;
        }
        let store = self.store;
        if !matches!(blocking(move || store.close()).await, Ok(Ok(()))) {
            tracing::error!("the store could not be closed in order");
            failed = true;
        }
        if failed { Err(PartEnded) } else { Ok(()) }
    }
}

impl Reload {
    /// Takes over what can change in a running relay.
    pub async fn apply(&self, config: &Config) {
        match dial_settings(config) {
            Ok(settings) => self.client.reconfigure(&settings),
            Err(error) => tracing::error!("{error}; the old authorities stay in use"),
        }
        let policy = config.instances.policy.clone();
        let auto_link: Vec<InstanceUrl> = policy.auto_link.clone();
        self.policy.store(Arc::new(policy));
        self.patience
            .store(Arc::new(Patience::from(&config.instances)));
        if let Err(error) = realign(&self.store, &self.public_url, auto_link, clock::now()).await {
            tracing::error!("the links could not be put in line with [instances]: {error}");
        }
        for tls in [&self.tls, &self.admin_tls].into_iter().flatten() {
            tls.reload();
        }
        if let Some(ranges) = &self.ranges {
            ranges.refresh_now();
        }
        match admin_token(&self.token_file) {
            Ok(token) => self.token.store(Arc::new(token)),
            Err(error) => tracing::error!("{error}; the old admin token stays in use"),
        }
        tracing::info!(
            "[instances], the TLS files, Atlassian's ranges and the admin token were read again; other settings need a restart"
        );
    }
}

/// Keeps Atlassian's keys over a restart.
async fn keep_install_keys(
    store: Store,
    mut news: tokio::sync::mpsc::Receiver<KeyNews>,
    stopped: impl Future<Output = ()>,
) {
    let mut stopped = std::pin::pin!(stopped);
    loop {
        let news = tokio::select! {
            () = &mut stopped => return,
            news = news.recv() => match news {
                Some(news) => news,
                None => return,
            },
        };
        let kept = store.transact(move |transaction| {
            match news {
                KeyNews::Learned(key) => transaction.put_install_key(key.as_ref().clone()),
                KeyNews::Gone(kid) => transaction.remove_install_key(&kid),
            }
            Ok::<(), std::convert::Infallible>(())
        });
        if let Err(error) = kept.await {
            tracing::warn!("one of Atlassian's public keys could not be kept: {error}");
        }
    }
}

async fn watch_tls(tls: Arc<TlsFiles>, stopped: impl Future<Output = ()>) {
    let mut stopped = std::pin::pin!(stopped);
    loop {
        tokio::select! {
            () = &mut stopped => return,
            () = tokio::time::sleep(TLS_CHECK_EVERY) => tls.reload_if_changed(),
        }
    }
}

/// Reads what a start would read besides the configuration, and tells what is odd about it.
pub fn check_files(config: &Config) -> Result<Vec<String>, StartError> {
    load_roots(config)?;
    if let Some(RangesSource::File(path)) = &config.access.ranges {
        access::read_file(path)?;
    }
    load_admin_tls(config)?;
    #[cfg(feature = "otlp")]
    if let Some(path) = config
        .telemetry
        .otlp
        .as_ref()
        .and_then(|otlp| otlp.headers_file.as_ref())
    {
        otlp::read_headers(path)?;
    }
    let Some(tls) = load_tls(config)? else {
        return Ok(Vec::new());
    };
    let mut odd = Vec::new();
    // What is still to be got is nothing odd.
    if config.public.acme.is_none() || tls.expires_at().is_some() {
        let certificate = doctor::certificate(tls.expires_at(), clock::now());
        if certificate.verdict != Verdict::Ok {
            odd.push(certificate.message);
        }
    }
    odd.extend(tls.ocsp_fault());
    Ok(odd)
}

/// Reads the public listener's certificate and key, if there are any.
pub fn load_tls(config: &Config) -> Result<Option<TlsFiles>, StartError> {
    if let Some(acme) = &config.public.acme {
        return Ok(Some(acme::open(acme, config.public.url.host())));
    }
    let files = config.public.tls.as_ref();
    Ok(files
        .map(|files| TlsFiles::load(&files.cert, &files.key, files.ocsp.as_deref()))
        .transpose()?)
}

/// Reads the admin listener's certificate and key, if there are any, and whose certificates let in.
fn load_admin_tls(config: &Config) -> Result<Option<(TlsFiles, TlsAcceptor)>, StartError> {
    let Some(files) = &config.admin.tls else {
        return Ok(None);
    };
    let tls = TlsFiles::load(&files.cert, &files.key, None)?;
    let Some(path) = &config.admin.client_ca_file else {
        let acceptor = tls.acceptor();
        return Ok(Some((tls, acceptor)));
    };
    let unusable = |cause: String| StartError::ClientCa {
        path: path.clone(),
        cause,
    };
    let pem = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
    let authorities = certificates(&pem).map_err(|error| unusable(error.to_string()))?;
    let acceptor = tls
        .acceptor_for(authorities)
        .map_err(|error| unusable(error.to_string()))?;
    Ok(Some((tls, acceptor)))
}

fn open_ranges(
    config: &Config,
    client: &Client,
    metrics: &Arc<Metrics>,
) -> Result<Option<Arc<AtlassianRanges>>, RangesError> {
    let Some(source) = &config.access.ranges else {
        return Ok(None);
    };
    let kept = config.store.path.with_file_name("atlassian-ranges.json");
    let (client, metrics) = (client.clone(), Arc::clone(metrics));
    let ranges = AtlassianRanges::open(source, &config.access, kept, client, metrics)?;
    Ok(Some(Arc::new(ranges)))
}

/// Reads the certificate authorities that instances are judged by.
pub fn load_roots(config: &Config) -> Result<RootCertStore, StartError> {
    let Some(path) = &config.instances.extra_ca_file else {
        return root_certificates(None).map_err(internal);
    };
    std::fs::read(path)
        .and_then(|pem| root_certificates(Some(&pem)))
        .map_err(|cause| StartError::ExtraCa {
            path: path.clone(),
            cause,
        })
}

/// What sends traces to the collector, if there is one.
#[cfg(feature = "otlp")]
fn exporter(
    config: &Config,
    client: &Client,
    metrics: &Arc<Metrics>,
) -> Result<Option<(Export, Exporter)>, StartError> {
    let otlp = config.telemetry.otlp.as_ref();
    let exporter = otlp.map(|otlp| {
        let (client, metrics) = (client.clone(), Arc::clone(metrics));
        Exporter::new(otlp, config.public.url.as_str(), client, metrics)
    });
    Ok(exporter.transpose()?)
}

fn dial_settings(config: &Config) -> Result<DialSettings, StartError> {
    Ok(DialSettings {
        roots: Arc::new(load_roots(config)?),
        connect_timeout: config.instances.connect_timeout,
        allow_private: config.instances.policy.allow_private_addresses,
    })
}

async fn listen(address: SocketAddr, key: &'static str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|cause| StartError::Bind {
            address,
            key,
            cause,
        })
}

/// Reads the admin token, or makes one.
fn admin_token(path: &Path) -> Result<Zeroizing<String>, StartError> {
    if let Some(content) = secret_file::read(path)? {
        let token = String::from_utf8_lossy(&content).trim().to_owned();
        return if token.len() < 16 {
            Err(StartError::ShortToken(path.to_owned()))
        } else {
            Ok(Zeroizing::new(token))
        };
    }
    let mut bytes = Zeroizing::new([0_u8; 32]);
    SystemRandom::new()
        .fill(&mut *bytes)
        .map_err(|_| StartError::Internal("no random bytes".to_owned()))?;
    let token = Zeroizing::new(URL_SAFE_NO_PAD.encode(*bytes));
    secret_file::create(path, token.as_bytes())?;
    Ok(token)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StartError> {
    tokio::task::spawn_blocking(work).await.map_err(internal)
}

fn internal(error: impl ToString) -> StartError {
    StartError::Internal(error.to_string())
}
