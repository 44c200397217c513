output "credentials" {
  description = "The command that makes kubectl speak to the cluster."
  value       = "aws eks update-kubeconfig --name ${aws_eks_cluster.raymlp.name} --region ${var.region}"
}
