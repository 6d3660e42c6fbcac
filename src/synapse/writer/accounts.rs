//! Changes of accounts, and notices to their users.

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Writer;
use crate::http::{Base, Call, Error, Pacing, Repeat};
use crate::synapse::account::User;
use crate::synapse::json::id;
use crate::synapse::reader::Reader;
use crate::values::clock::Timestamp;

impl Writer {
    /// Locks or unlocks an account that exists, which the caller has just read: Synapse would create any other
    /// (`PUT /v2/users/…`, Synapse 1.91). Repeating it changes nothing.
    pub(crate) async fn set_locked(&self, user_id: &str, locked: bool) -> Result<(), Error> {
        let body = json!({ "locked": locked });
        let call = self.call(Method::PUT, Reader::USER, body);
        let response = self.send(Call { ids: &[user_id], ..call }).await?;
        if response.status.as_u16() == 201 {
            return Err(response.unexpected(format!("Synapse created the account {user_id}, which existed just before: deactivate it and find out who removed the original one")));
        }
        if response.decode::<User>()?.locked != locked {
            let problem = if locked { "did not lock" } else { "did not unlock" };
            return Err(response.contradicted(&format!("Synapse {problem} the account")));
        }
        Ok(())
    }

    /// Deactivates an account (`POST /v1/deactivate/…`). Repeating it changes nothing, with the same `erase`.
    pub(crate) async fn deactivate(&self, user_id: &str, erase: bool) -> Result<(), Error> {
        #[derive(Deserialize)]
        struct Deactivated {
            #[expect(dead_code, reason = "distinguishes Synapse's response from a proxy's")]
            id_server_unbind_result: String,
        }
        let endpoint = "/_synapse/admin/v1/deactivate/{}";
        let body = json!({ "erase": erase });
        // It takes long where the account is in many rooms: the next plan shows whether it is still needed.
        let call = Call { repeat: Repeat::IfNotApplied, ..self.call(Method::POST, endpoint, body) };
        let response = self.send(Call { ids: &[user_id], ..call }).await?;
        response.decode::<Deactivated>().map(drop)
    }

    /// Sends a text to a user as a server notice, and returns when that was confirmed (`PUT /v1/send_server_notice/…`).
    ///
    /// Synapse (1.163) knows a transaction for 30 to 60 minutes, by its id alone, until it is restarted: within that
    /// time the same id sends nothing more, to whomever.
    pub(crate) async fn send_notice(
        &self,
        transaction_id: &str,
        user_id: &str,
        text: &str,
    ) -> Result<Timestamp, Error> {
        #[derive(Deserialize)]
        struct Sent {
            #[expect(dead_code, reason = "distinguishes Synapse's response from a proxy's")]
            #[serde(deserialize_with = "id")]
            event_id: String,
        }
        let endpoint = "/_synapse/admin/v1/send_server_notice/{}";
        let content = json!({ "msgtype": "m.text", "body": text });
        let body = json!({ "user_id": user_id, "content": content });
        let call = self.call(Method::PUT, endpoint, body);
        let response = self.send(Call { ids: &[transaction_id], ..call }).await?;
        response.decode::<Sent>()?;
        Ok(self.reader.now())
    }

    /// A request that may be sent twice.
    fn call<'a>(&self, method: Method, endpoint: &'static str, body: Value) -> Call<'a> {
        Call {
            method,
            base: Base::Homeserver,
            endpoint,
            ids: &[],
            query: vec![],
            body: Some(body),
            repeat: Repeat::Always,
            pacing: Pacing::Normal,
            timeout: Some(self.reader.transport.request_timeout()),
        }
    }
}
