variable "project" {
  description = "Project of Google Cloud."
  type        = string
}

variable "region" {
  description = "Region of the cluster."
  type        = string
  default     = "europe-west4"
}

variable "name" {
  description = "Name of the cluster and of what belongs to it."
  type        = string
  default     = "raymlp"
}

variable "labels" {
  description = "Labels of the cluster, for the bill."
  type        = map(string)
  default     = { app = "raymlp" }
}

variable "administrators" {
  description = "Networks that may reach the Kubernetes API, as CIDRs: your VPN."
  type        = list(string)

  validation {
    condition     = !contains(var.administrators, "0.0.0.0/0")
    error_message = "administrators holds 0.0.0.0/0; expected your own networks."
  }
}

variable "security_group" {
  description = "A Google group (gke-security-groups@DOMAIN) whose members get rights by Kubernetes roles; null for none."
  type        = string
  default     = null
}

variable "machine" {
  description = "Machine type of nodes without a GPU."
  type        = string
  default     = "n2-standard-8"
}

variable "gpu_machine" {
  description = "Machine type of nodes with a GPU."
  type        = string
  default     = "g2-standard-16"
}

variable "gpu" {
  description = "GPU of the GPU pool."
  type        = string
  default     = "nvidia-l4"
}

variable "most_spot" {
  description = "Most spot nodes."
  type        = number
  default     = 8
}

variable "most_gpu" {
  description = "Most GPU nodes."
  type        = number
  default     = 4
}

variable "kuberay" {
  description = "Version of KubeRay's chart."
  type        = string
  default     = "1.7.0"
}
