//! The door over real HTTP: each verb, each bad input, and a real client.
