// Package dashboardtest runs, in its tests, the queries of
// docs/grafana-dashboard.json in a Prometheus that scrapes a program at work. It
// is a module of its own, so that the exporter stays out of the requirements of
// idemotel.
package dashboardtest
