//! The part of the history that replicas share: leases, who is there, and what they request of each other.

use std::time::Duration;

use super::database::work;
use super::error::Error;
use super::leases::{self, Holder, Renewal, Wanted};
use super::requests::{self, TakenRequest};
use super::writer::History;

impl History {
    /// Whether several processes may use the history at once, each under the leases that it holds.
    pub(crate) fn is_shared(&self) -> bool {
        self.holder().is_some()
    }

    /// The id of this process among those that share the history.
    pub(crate) fn replica(&self) -> &str {
        self.holder().unwrap_or_default()
    }

    /// Renews the leases of this process, and takes its share of those that are free.
    pub(crate) async fn renew_leases(
        &self,
        wanted: &Wanted,
        ttl: Duration,
    ) -> Result<Renewal, Error> {
        let me = self.replica();
        self.required_at_once(|connection| work(leases::renew(connection, me, wanted, ttl))).await
    }

    /// Takes the lease of a homeserver for one run; returns whether nobody else has it.
    pub(crate) async fn take_lease(&self, homeserver: &str, ttl: Duration) -> Result<bool, Error> {
        let (me, wanted) = (self.replica(), [homeserver.to_owned()]);
        let wanted = &wanted;
        let taken = self
            .required_at_once(|connection| work(leases::take(connection, me, wanted, ttl)))
            .await?;
        Ok(!taken.is_empty())
    }

    /// Renews the lease of a homeserver; returns whether this process still has it.
    pub(crate) async fn extend_lease(
        &self,
        homeserver: &str,
        ttl: Duration,
    ) -> Result<bool, Error> {
        let me = self.replica();
        let held =
            self.required_at_once(|connection| work(leases::extend(connection, me, ttl))).await?;
        Ok(held.contains_key(homeserver))
    }

    /// Says who holds the lease of a homeserver.
    pub(crate) async fn lease_holder(&self, homeserver: &str) -> Result<Holder, Error> {
        self.required_at_once(|connection| work(leases::holder(connection, homeserver))).await
    }

    /// Gives leases away at once; nothing may run there.
    pub(crate) async fn resign_leases(&self, homeservers: &[String]) -> Result<(), Error> {
        if homeservers.is_empty() {
            return Ok(());
        }
        let me = self.replica();
        self.required_at_once(|connection| work(leases::resign(connection, me, homeservers))).await
    }

    /// Gives all leases away, and leaves the replicas.
    pub(crate) async fn leave_replicas(&self) -> Result<(), Error> {
        self.end_leases_of(self.replica()).await
    }

    /// Ends the leases of a process that certainly has ended.
    pub(crate) async fn end_leases_of(&self, replica: &str) -> Result<(), Error> {
        self.required_at_once(|connection| work(leases::leave(connection, replica))).await
    }
}

/// Requests for the holder of a lease. Each is small and short-lived, and none waits behind the records of runs.
impl History {
    /// Records a request about a job; returns its id, or `None` where too many wait already.
    pub(crate) async fn record_request(
        &self,
        homeserver: &str,
        job: &str,
        request: &str,
        valid_for: Duration,
    ) -> Result<Option<i64>, Error> {
        let me = self.replica();
        self.required_at_once(|connection| {
            work(requests::insert(connection, me, (homeserver, job), request, valid_for))
        })
        .await
    }

    /// Takes a request, which nobody else can then; `None` where it is not this process's to take.
    pub(crate) async fn take_request(&self, id: i64) -> Result<Option<TakenRequest>, Error> {
        let me = self.replica();
        self.required_at_once(|connection| work(requests::take(connection, me, id))).await
    }

    /// Answers a request that this process has taken.
    pub(crate) async fn answer_request(&self, id: i64, answer: &str) -> Result<(), Error> {
        let me = self.replica();
        self.required_at_once(|connection| work(requests::answer(connection, me, id, answer))).await
    }

    /// Takes a request back; returns whether nobody has taken it, and nobody can any more.
    pub(crate) async fn withdraw_request(&self, id: i64) -> Result<bool, Error> {
        self.required_at_once(|connection| work(requests::withdraw(connection, id))).await
    }

    /// Deletes a request whose answer was read.
    pub(crate) async fn delete_request(&self, id: i64) -> Result<(), Error> {
        self.required_at_once(|connection| work(requests::delete(connection, id))).await
    }
}
