//! The task that makes messages of what happened, and has them sent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::task::AbortOnDropHandle;

use super::compose::{For, about_run};
use super::delivery::{Delivery, Parts};
use super::{digest, plans};
use crate::config::Notification;
use crate::history::{self, History, PlanMessage};
use crate::observe::metrics::Metrics;
use crate::scheduler::reload::Reloader;
use crate::scheduler::supervisor::Supervisor;
use crate::values::clock::{Clock, Timestamp};

/// How often to look for something to tell, and at reactions.
const EVERY: Duration = Duration::from_secs(3);
/// How often runs are marked as reported where nobody is told.
const REPORT_NOTHING_EVERY: Duration = Duration::from_mins(1);

/// How often to look for messages that could not be sent for too long.
const DROP_OLD_EVERY: Duration = Duration::from_hours(1);

/// Makes messages of what happened, and has them sent; one task for each notification, so that none waits for another.
pub(crate) struct Notifier {
    parts: Parts,
    reloader: Arc<Reloader>,
    senders: BTreeMap<String, Sender>,
    /// The notifications with a series in the metrics.
    shown: Vec<String>,
    /// When runs were last marked as reported without telling anybody.
    reported_nothing: Option<Instant>,
    /// When messages that could not be sent were last given up.
    dropped_old: Option<Instant>,
}

enum Sender {
    Idle(Delivery),
    Sending(AbortOnDropHandle<Delivery>),
}

impl Notifier {
    pub(crate) fn new(
        supervisor: Arc<Supervisor>,
        reloader: Arc<Reloader>,
        history: History,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Self {
        Self {
            parts: Parts { supervisor, history, metrics, clock },
            reloader,
            senders: BTreeMap::new(),
            shown: Vec::new(),
            reported_nothing: None,
            dropped_old: None,
        }
    }

    /// Never returns.
    pub(crate) async fn run(mut self) {
        let mut is_failing = false;
        loop {
            let notifications = self.reloader.notifications();
            match self.round(&notifications).await {
                Ok(()) => is_failing = false,
                // It is reported by whoever needs it, too.
                Err(history::Error::Unavailable(_)) => {}
                Err(error) if !std::mem::replace(&mut is_failing, true) => {
                    tracing::warn!(target: "microglia::notification", "cannot make messages: {error}");
                }
                Err(_) => {}
            }
            // A reload may add one at any time.
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn round(&mut self, notifications: &Arc<[Notification]>) -> Result<(), history::Error> {
        let parts = self.parts.clone();
        let (history, now) = (&parts.history, parts.clock.now());
        if notifications.is_empty() {
            self.show_pending(notifications, &BTreeMap::new());
            if self.reported_nothing.is_some_and(|at| at.elapsed() < REPORT_NOTHING_EVERY) {
                return Ok(());
            }
            self.reported_nothing = Some(Instant::now());
            // Nothing is written where nothing ended.
            return match history.unreported_runs().await?.is_empty() {
                true => Ok(()),
                false => history.report_nothing().await,
            };
        }
        let daemon = self.reloader.daemon();
        let made_for = |notification| For {
            notification,
            public_url: daemon.public_url.as_ref(),
            zone: daemon.timezone,
            now,
        };
        // Before what the run that applies the plan did.
        for plan in history.undecided_plans().await? {
            match notifications.iter().find(|it| it.name == plan.notification) {
                Some(notification) => {
                    plans::tell_decision(history, &made_for(notification), &plan).await?;
                }
                None => plans::close(history, &plan).await?,
            }
        }
        for run in history.unreported_runs().await? {
            let mut messages = Vec::new();
            for notification in notifications.iter() {
                messages.extend(about_run(history, &made_for(notification), &run).await?);
            }
            history.report_run(run.id.unwrap_or_default(), &messages).await?;
        }
        for notification in notifications.iter() {
            if let Some(schedule) = &notification.digest {
                digest::make_due(history, &parts.metrics, &made_for(notification), schedule)
                    .await?;
            }
        }
        if self.dropped_old.is_none_or(|at| at.elapsed() >= DROP_OLD_EVERY) {
            self.drop_old(now).await?;
            self.dropped_old = Some(Instant::now());
        }
        let undecided: Arc<[PlanMessage]> = history.undecided_plans().await?.into();
        for index in 0..notifications.len() {
            self.send(notifications, index, &undecided).await;
        }
        self.senders.retain(|name, _| notifications.iter().any(|it| it.name == *name));
        let pending = history.pending_messages().await?.into_iter().collect();
        self.show_pending(notifications, &pending);
        Ok(())
    }

    /// Gives up what could not be sent for as long as the history is kept.
    async fn drop_old(&self, now: Timestamp) -> Result<(), history::Error> {
        let before = now - self.reloader.daemon().keep_history.as_chrono();
        for name in self.parts.history.drop_messages_before(before).await? {
            tracing::error!(target: "microglia::notification", notification = %name, "notification {name}: a message was given up, because it could not be sent for as long as the history is kept");
        }
        Ok(())
    }

    /// Has the messages of a notification sent, unless another replica does that, or the last round goes on.
    async fn send(
        &mut self,
        notifications: &Arc<[Notification]>,
        index: usize,
        undecided: &Arc<[PlanMessage]>,
    ) {
        let Some(notification) = notifications.get(index) else { return };
        let name = notification.name.clone();
        let mut delivery = match self.senders.remove(&name) {
            None => Delivery::default(),
            Some(Sender::Idle(delivery)) => delivery,
            Some(Sender::Sending(task)) if !task.is_finished() => {
                self.senders.insert(name, Sender::Sending(task));
                return;
            }
            Some(Sender::Sending(task)) => match task.await {
                Ok(delivery) => delivery,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => Delivery::default(),
                },
            },
        };
        let homeserver = self.parts.supervisor.homeserver(&notification.homeserver).await;
        let Some(transport) = homeserver else {
            self.senders.insert(name, Sender::Idle(delivery));
            return;
        };
        let (parts, daemon) = (self.parts.clone(), self.reloader.daemon());
        let (notifications, undecided) = (Arc::clone(notifications), Arc::clone(undecided));
        let sending = tokio::spawn(async move {
            if let Some(notification) = notifications.get(index) {
                let made_for = For {
                    notification,
                    public_url: daemon.public_url.as_ref(),
                    zone: daemon.timezone,
                    now: parts.clock.now(),
                };
                delivery.round(&parts, &made_for, transport, &undecided).await;
            }
            delivery
        });
        self.senders.insert(name, Sender::Sending(AbortOnDropHandle::new(sending)));
    }

    fn show_pending(&mut self, notifications: &[Notification], pending: &BTreeMap<String, u64>) {
        let metrics = &self.parts.metrics;
        for gone in
            self.shown.iter().filter(|name| notifications.iter().all(|it| it.name != **name))
        {
            let _ = metrics.notifications_pending.remove_label_values(&[gone.as_str()]);
            for result in ["sent", "failed"] {
                let _ = metrics.notifications.remove_label_values(&[gone.as_str(), result]);
            }
        }
        for notification in notifications {
            let name = notification.name.as_str();
            let count = pending.get(name).copied().unwrap_or(0);
            let count = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
            metrics.notifications_pending.with_label_values(&[name]).set(count);
            for result in ["sent", "failed"] {
                // From the start, so that a rate can be computed.
                let _ = metrics.notifications.with_label_values(&[name, result]);
            }
        }
        self.shown = notifications.iter().map(|it| it.name.clone()).collect();
    }
}
