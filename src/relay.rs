//! One relay: builds every part once, in the order of dependence, binds both listeners, runs until told to stop.

mod files;
mod reload;
mod start_error;

pub use files::{check_files, load_roots, load_tls};
pub use reload::Reload;
pub use start_error::StartError;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use jiff::SignedDuration;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

#[cfg(feature = "otlp")]
use files::exporter;
use files::{admin_token, dial_settings, load_admin_tls, open_ranges};
use start_error::internal;

#[cfg(feature = "otlp")]
use crate::otlp::Exporter;
use crate::{
    access::{Access, AtlassianRanges},
    acme::Acme,
    admin::{Admin, AdminParts, Standing},
    client::Client,
    clock,
    config::Config,
    doctor::Doctor,
    forge_sites::ForgeSites,
    forget,
    gitlab::{Asker, KeyFetches, Patience, Prober, deliver::Courier},
    jira::{Admins, Forwarder, Recogniser},
    jwt::{
        InstallKeys, InvocationVerifier, KeySet, Signer, crypto, install_keys::KeyNews,
        lifecycle::LifecycleVerifier,
    },
    linking::Linker,
    metrics::Metrics,
    reconcile::{Reconciler, realign},
    rotation::KeyRotation,
    rounds::Rounds,
    routes::{self, Public, PublicParts},
    server::{Door, PerAddress, Server, Turning, UnixDoor, Workers},
    sessions::Sessions,
    sightings::{self, Sighting, Sightings},
    spool::{Spool, SpoolWorker},
    store::{Store, StoreOwner},
    tls::TlsFiles,
    trace::Traces,
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
            Arc::clone(&traces),
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

async fn listen(address: SocketAddr, key: &'static str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|cause| StartError::Bind {
            address,
            key,
            cause,
        })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StartError> {
    tokio::task::spawn_blocking(work).await.map_err(internal)
}
