variable "region" {
  description = "Region of the cluster."
  type        = string
  default     = "eu-west-1"
}

variable "name" {
  description = "Name of the cluster and of what belongs to it."
  type        = string
  default     = "raymlp"
}

variable "kubernetes" {
  description = "Version of Kubernetes."
  type        = string
  default     = "1.34"
}

variable "subnets" {
  description = "Private subnets of your VPC, in two zones or more, with a way out through a NAT gateway."
  type        = list(string)
}

variable "machines" {
  description = "Machine types of nodes without a GPU; several make spot machines easier to get."
  type        = list(string)
  default     = ["m7i.2xlarge", "m7a.2xlarge", "m6i.2xlarge"]
}

variable "gpu_machines" {
  description = "Machine types of nodes with a GPU."
  type        = list(string)
  default     = ["g6.4xlarge"]
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
