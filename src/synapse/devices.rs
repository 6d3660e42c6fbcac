//! Deleting devices, with the access tokens and keys that they have.

use reqwest::Method;
use serde_json::json;

use super::writer::Writer;
use crate::http::Error;

impl Writer {
    /// Deletes devices of an account, whatever they are (`POST /v2/users/…/delete_devices`).
    ///
    /// Synapse says nothing of what it deleted: those that do not exist are as good as deleted.
    pub(crate) async fn delete_devices(
        &self,
        user_id: &str,
        device_ids: &[String],
    ) -> Result<(), Error> {
        let endpoint = "/_synapse/admin/v2/users/{}/delete_devices";
        // A text in place of the list would delete the devices that are named like its letters.
        let body = json!({ "devices": device_ids });
        self.send_repeatable(Method::POST, endpoint, &[user_id], Some(body)).await.map(drop)
    }
}
