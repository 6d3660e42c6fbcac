//! The part of the history that replicas share: leases, and who is there.

use std::time::Duration;

use super::database::work;
use super::error::Error;
use super::leases::{self, Holder, Renewal, Wanted};
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
