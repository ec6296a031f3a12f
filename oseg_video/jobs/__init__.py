"""One job: from its settings to clips with manifests."""
