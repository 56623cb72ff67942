//! Pod CIDRs that the agents take themselves.
