# A private EKS cluster for raymlp: a group that stays, a spot group and a GPU group that scale from nothing, KubeRay by Helm.
# cluster/k8s goes on top: kubectl apply -k cluster/k8s/overlays/spot
# Scaling the groups needs the cluster autoscaler (or Karpenter) in the cluster; storage.yaml needs the EFS driver and a class of it.

terraform {
  required_version = ">= 1.9"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.0"
    }
    helm = {
      source  = "hashicorp/helm"
      version = "~> 3.0"
    }
  }
}

provider "aws" {
  region = var.region
}

provider "helm" {
  kubernetes = {
    host                   = aws_eks_cluster.raymlp.endpoint
    cluster_ca_certificate = base64decode(aws_eks_cluster.raymlp.certificate_authority[0].data)
    exec = {
      api_version = "client.authentication.k8s.io/v1"
      command     = "aws"
      args        = ["eks", "get-token", "--cluster-name", aws_eks_cluster.raymlp.name, "--region", var.region]
    }
  }
}

data "aws_caller_identity" "me" {}

data "aws_iam_policy_document" "assume" {
  for_each = toset(["eks", "ec2"])

  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["${each.key}.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "cluster" {
  name               = "${var.name}-cluster"
  assume_role_policy = data.aws_iam_policy_document.assume["eks"].json
}

resource "aws_iam_role_policy_attachment" "cluster" {
  role       = aws_iam_role.cluster.name
  policy_arn = "arn:aws:iam::aws:policy/AmazonEKSClusterPolicy"
}

# What machines may do: join, speak on the network, pull images. Pods that use a bucket get a role of their own by EKS Pod Identity.
resource "aws_iam_role" "nodes" {
  name               = "${var.name}-nodes"
  assume_role_policy = data.aws_iam_policy_document.assume["ec2"].json
}

resource "aws_iam_role_policy_attachment" "nodes" {
  for_each   = toset(["AmazonEKSWorkerNodePolicy", "AmazonEKS_CNI_Policy", "AmazonEC2ContainerRegistryPullOnly"])
  role       = aws_iam_role.nodes.name
  policy_arn = "arn:aws:iam::aws:policy/${each.value}"
}

data "aws_iam_policy_document" "key" {
  statement {
    actions   = ["kms:*"]
    resources = ["*"]

    principals {
      type        = "AWS"
      identifiers = ["arn:aws:iam::${data.aws_caller_identity.me.account_id}:root"]
    }
  }
}

resource "aws_kms_key" "secrets" {
  description             = "Secrets of ${var.name} at rest"
  enable_key_rotation     = true
  deletion_window_in_days = 30
  policy                  = data.aws_iam_policy_document.key.json
}

resource "aws_eks_cluster" "raymlp" {
  name                      = var.name
  role_arn                  = aws_iam_role.cluster.arn
  version                   = var.kubernetes
  enabled_cluster_log_types = ["api", "audit", "authenticator", "controllerManager", "scheduler"]
  deletion_protection       = true

  access_config {
    authentication_mode = "API"
  }

  vpc_config {
    subnet_ids              = var.subnets
    endpoint_private_access = true
    endpoint_public_access  = false # reach it through the VPN of the VPC
  }

  encryption_config {
    resources = ["secrets"]

    provider {
      key_arn = aws_kms_key.secrets.arn
    }
  }

  depends_on = [aws_iam_role_policy_attachment.cluster]
}

# The network plug-in enforces NetworkPolicies only when it is told to.
resource "aws_eks_addon" "network" {
  cluster_name         = aws_eks_cluster.raymlp.name
  addon_name           = "vpc-cni"
  configuration_values = jsonencode({ enableNetworkPolicy = "true" })
}

resource "aws_eks_addon" "others" {
  for_each     = toset(["coredns", "kube-proxy", "eks-pod-identity-agent", "aws-efs-csi-driver"])
  cluster_name = aws_eks_cluster.raymlp.name
  addon_name   = each.value
  depends_on   = [aws_eks_node_group.groups]
}

resource "aws_launch_template" "nodes" {
  name_prefix = "${var.name}-"

  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1 # pods do not reach the machine's role
  }

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_size = 200
      volume_type = "gp3"
      encrypted   = true
    }
  }
}

locals {
  # label and taint of spot machines are those that cluster/k8s/overlays/spot names
  groups = {
    stays = { machines = var.machines, least = 1, most = 3, capacity = "ON_DEMAND", image = "AL2023_x86_64_STANDARD", taint = null }
    spot  = { machines = var.machines, least = 0, most = var.most_spot, capacity = "SPOT", image = "AL2023_x86_64_STANDARD", taint = "raymlp.io/spot" }
    gpu   = { machines = var.gpu_machines, least = 0, most = var.most_gpu, capacity = "ON_DEMAND", image = "AL2023_x86_64_NVIDIA", taint = "nvidia.com/gpu" }
  }
}

resource "aws_eks_node_group" "groups" {
  for_each        = local.groups
  cluster_name    = aws_eks_cluster.raymlp.name
  node_group_name = each.key
  node_role_arn   = aws_iam_role.nodes.arn
  subnet_ids      = var.subnets
  instance_types  = each.value.machines
  capacity_type   = each.value.capacity
  ami_type        = each.value.image
  labels          = each.key == "spot" ? { "raymlp.io/spot" = "true" } : {}

  launch_template {
    id      = aws_launch_template.nodes.id
    version = aws_launch_template.nodes.latest_version
  }

  scaling_config {
    min_size     = each.value.least
    desired_size = each.value.least
    max_size     = each.value.most
  }

  dynamic "taint" {
    for_each = each.value.taint == null ? [] : [each.value.taint]
    content {
      key    = taint.value
      value  = "true"
      effect = "NO_SCHEDULE"
    }
  }

  # The autoscaler changes it.
  lifecycle {
    ignore_changes = [scaling_config[0].desired_size]
  }

  depends_on = [aws_iam_role_policy_attachment.nodes, aws_eks_addon.network]
}

resource "helm_release" "kuberay" {
  name             = "kuberay-operator"
  repository       = "https://ray-project.github.io/kuberay-helm/"
  chart            = "kuberay-operator"
  version          = var.kuberay
  namespace        = "kuberay-system" # the NetworkPolicies of cluster/k8s know it by this name
  create_namespace = true
  depends_on       = [aws_eks_node_group.groups]
}
