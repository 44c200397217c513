# A private GKE cluster for raymlp: a pool that stays, a spot pool and a GPU pool that scale from nothing, KubeRay by Helm.
# cluster/k8s goes on top: kubectl apply -k cluster/k8s/overlays/spot

terraform {
  required_version = ">= 1.9"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 7.0"
    }
    helm = {
      source  = "hashicorp/helm"
      version = "~> 3.0"
    }
  }
}

provider "google" {
  project = var.project
  region  = var.region
}

data "google_client_config" "me" {}

provider "helm" {
  kubernetes = {
    host                   = "https://${google_container_cluster.raymlp.endpoint}"
    token                  = data.google_client_config.me.access_token
    cluster_ca_certificate = base64decode(google_container_cluster.raymlp.master_auth[0].cluster_ca_certificate)
  }
}

resource "google_compute_network" "raymlp" {
  name                    = var.name
  auto_create_subnetworks = false
}

resource "google_compute_subnetwork" "raymlp" {
  name                     = var.name
  network                  = google_compute_network.raymlp.id
  ip_cidr_range            = "10.0.0.0/20"
  private_ip_google_access = true

  secondary_ip_range {
    range_name    = "pods"
    ip_cidr_range = "10.4.0.0/14"
  }

  secondary_ip_range {
    range_name    = "services"
    ip_cidr_range = "10.8.0.0/20"
  }

  log_config {
    aggregation_interval = "INTERVAL_10_MIN"
    flow_sampling        = 0.1
  }
}

# Machines have no public address: packages, images and sources come through here.
resource "google_compute_router" "raymlp" {
  name    = var.name
  network = google_compute_network.raymlp.id
}

resource "google_compute_router_nat" "raymlp" {
  name                               = var.name
  router                             = google_compute_router.raymlp.name
  nat_ip_allocate_option             = "AUTO_ONLY"
  source_subnetwork_ip_ranges_to_nat = "ALL_SUBNETWORKS_ALL_IP_RANGES"
}

# What machines may do: write logs and metrics, pull images. Pods that use a bucket get an account of their own by workload identity.
resource "google_service_account" "nodes" {
  account_id   = "${var.name}-nodes"
  display_name = "Machines of ${var.name}"
}

resource "google_project_iam_member" "nodes" {
  for_each = toset(["roles/container.defaultNodeServiceAccount", "roles/artifactregistry.reader"])
  project  = var.project
  role     = each.value
  member   = google_service_account.nodes.member
}

resource "google_container_cluster" "raymlp" {
  name                        = var.name
  location                    = var.region
  network                     = google_compute_network.raymlp.id
  subnetwork                  = google_compute_subnetwork.raymlp.id
  remove_default_node_pool    = true
  initial_node_count          = 1
  deletion_protection         = true
  enable_shielded_nodes       = true
  enable_intranode_visibility = true
  datapath_provider           = "ADVANCED_DATAPATH" # enforces NetworkPolicies
  resource_labels             = var.labels

  release_channel {
    channel = "REGULAR"
  }

  gateway_api_config {
    channel = "CHANNEL_STANDARD"
  }

  ip_allocation_policy {
    cluster_secondary_range_name  = "pods"
    services_secondary_range_name = "services"
  }

  private_cluster_config {
    enable_private_nodes    = true
    enable_private_endpoint = false
    master_ipv4_cidr_block  = "172.16.0.0/28"
  }

  master_authorized_networks_config {
    dynamic "cidr_blocks" {
      for_each = var.administrators
      content {
        cidr_block = cidr_blocks.value
      }
    }
  }

  master_auth {
    client_certificate_config {
      issue_client_certificate = false
    }
  }

  workload_identity_config {
    workload_pool = "${var.project}.svc.id.goog"
  }

  binary_authorization {
    evaluation_mode = "PROJECT_SINGLETON_POLICY_ENFORCE"
  }

  # For the machines of the pool that is made and removed at once.
  node_config {
    service_account = google_service_account.nodes.email

    shielded_instance_config {
      enable_secure_boot          = true
      enable_integrity_monitoring = true
    }

    workload_metadata_config {
      mode = "GKE_METADATA"
    }
  }

  dynamic "authenticator_groups_config" {
    for_each = var.security_group == null ? [] : [var.security_group]
    content {
      security_group = authenticator_groups_config.value
    }
  }
}

locals {
  # label and taint of spot machines are those that cluster/k8s/overlays/spot names
  pools = {
    stays = { machine = var.machine, least = 1, most = 3, spot = false, gpu = null }
    spot  = { machine = var.machine, least = 0, most = var.most_spot, spot = true, gpu = null }
    gpu   = { machine = var.gpu_machine, least = 0, most = var.most_gpu, spot = false, gpu = var.gpu }
  }
}

resource "google_container_node_pool" "pools" {
  for_each = local.pools
  name     = each.key
  cluster  = google_container_cluster.raymlp.id

  autoscaling {
    total_min_node_count = each.value.least
    total_max_node_count = each.value.most
    location_policy      = each.value.spot ? "ANY" : "BALANCED"
  }

  management {
    auto_repair  = true
    auto_upgrade = true
  }

  node_config {
    machine_type    = each.value.machine
    spot            = each.value.spot
    image_type      = "COS_CONTAINERD"
    disk_type       = "pd-balanced"
    disk_size_gb    = 200
    service_account = google_service_account.nodes.email
    oauth_scopes    = ["https://www.googleapis.com/auth/cloud-platform"]
    labels          = each.value.spot ? { "raymlp.io/spot" = "true" } : {}

    dynamic "taint" {
      for_each = each.value.spot ? ["raymlp.io/spot"] : []
      content {
        key    = taint.value
        value  = "true"
        effect = "NO_SCHEDULE"
      }
    }

    dynamic "guest_accelerator" {
      for_each = each.value.gpu == null ? [] : [each.value.gpu]
      content {
        type  = guest_accelerator.value
        count = 1

        gpu_driver_installation_config {
          gpu_driver_version = "DEFAULT"
        }
      }
    }

    shielded_instance_config {
      enable_secure_boot          = true
      enable_integrity_monitoring = true
    }

    workload_metadata_config {
      mode = "GKE_METADATA"
    }
  }
}

resource "helm_release" "kuberay" {
  name             = "kuberay-operator"
  repository       = "https://ray-project.github.io/kuberay-helm/"
  chart            = "kuberay-operator"
  version          = var.kuberay
  namespace        = "kuberay-system" # the NetworkPolicies of cluster/k8s know it by this name
  create_namespace = true
  depends_on       = [google_container_node_pool.pools]
}
