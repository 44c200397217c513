output "credentials" {
  description = "The command that makes kubectl speak to the cluster."
  value       = "gcloud container clusters get-credentials ${google_container_cluster.raymlp.name} --region ${var.region} --project ${var.project}"
}
