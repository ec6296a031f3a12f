"""Running a job: guided denoising, loading, generating, manifests."""
