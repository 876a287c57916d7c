# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_sentry_global_optspecs
    string join \n config.file= web.listen-address= web.telemetry-path= web.config.file= web.enable-lifecycle= btf= bpf.stats= overhead.budget= overhead.interval= series.max= series.retention= metrics.buckets-per-octave= metrics.classic-histograms= metrics.created= aggregate-by= kubernetes.node= kubernetes.kubeconfig= kubernetes.pod-labels= otlp.endpoint= otlp.protocol= otlp.interval= otlp.headers= otlp.ca-file= log.level= log.format= path.procfs= path.sysfs= path.rootfs= probes= tcp.hook= tcp.exemplars= disk.hook= disk.exemplars= gpu.hook= h/help V/version
end

function __fish_sentry_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_sentry_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_sentry_using_subcommand
    set -l cmd (__fish_sentry_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c sentry -n "__fish_sentry_needs_command" -l config.file -d 'YAML file with any of the settings below; none is read by default [env: SENTRY_CONFIG_FILE]' -r -F
complete -c sentry -n "__fish_sentry_needs_command" -l web.listen-address -d 'Address to listen on; :PORT means every address of the host [env: SENTRY_WEB_LISTEN_ADDRESS]' -r
complete -c sentry -n "__fish_sentry_needs_command" -l web.telemetry-path -d 'Path under which the metrics are served [env: SENTRY_WEB_TELEMETRY_PATH]' -r
complete -c sentry -n "__fish_sentry_needs_command" -l web.config.file -d 'TLS, client certificates and passwords: a file as Prometheus\' exporters read it [env: SENTRY_WEB_CONFIG_FILE]' -r -F
complete -c sentry -n "__fish_sentry_needs_command" -l web.enable-lifecycle -d 'Read the configuration anew upon POST /-/reload, as upon SIGHUP [env: SENTRY_WEB_ENABLE_LIFECYCLE]' -r -f -a "true\t''
false\t''"
complete -c sentry -n "__fish_sentry_needs_command" -l btf -d 'Type information (raw BTF) of a kernel that has none of its own [env: SENTRY_BTF]' -r -F
complete -c sentry -n "__fish_sentry_needs_command" -l bpf.stats -d 'Measure what the probes cost, by the kernel\'s BPF statistics, while the agent runs [env: SENTRY_BPF_STATS]' -r -f -a "true\t''
false\t''"
complete -c sentry -n "__fish_sentry_needs_command" -l overhead.budget -d 'Share of all CPUs\' time that Sentry may take; what is over it sheds exemplars, then time, then probes; or off [env: SENTRY_OVERHEAD_BUDGET]' -r
complete -c sentry -n "__fish_sentry_needs_command" -l overhead.interval -d 'How often to look what it takes, 1s to 1h; it takes four times over the budget to shed something [env: SENTRY_OVERHEAD_INTERVAL]' -r
complete -c sentry -n "__fish_sentry_needs_command" -l series.max -d 'Histograms kept in the kernel, 64 to 32000; the rest is counted together as "other" [env: SENTRY_SERIES_MAX]' -r
complete -c sentry -n "__fish_sentry_needs_command" -l series.retention -d 'How long the series of a workload that is gone stays: 500ms, 90s, 2m or 1h [env: SENTRY_SERIES_RETENTION]' -r
complete -c sentry -n "__fish_sentry_needs_command" -l metrics.buckets-per-octave -d 'Buckets shown for each doubling of time; the kernel always counts 4 [env: SENTRY_METRICS_BUCKETS_PER_OCTAVE]' -r -f -a "1\t''
2\t''
4\t''"
complete -c sentry -n "__fish_sentry_needs_command" -l metrics.classic-histograms -d 'Show classic histograms beside the native ones in protobuf; the text formats always have them [env: SENTRY_METRICS_CLASSIC_HISTOGRAMS]' -r -f -a "true\t''
false\t''"
complete -c sentry -n "__fish_sentry_needs_command" -l metrics.created -d 'Say since when each counter and histogram counts, in OpenMetrics and protobuf; series whose labels become others then begin anew [env: SENTRY_METRICS_CREATED]' -r -f -a "true\t''
false\t''"
complete -c sentry -n "__fish_sentry_needs_command" -l aggregate-by -d 'What one set of labels on /metrics stands for [env: SENTRY_AGGREGATE_BY]' -r -f -a "container\t''
pod\t''
workload\t''
node\t''"
complete -c sentry -n "__fish_sentry_needs_command" -l kubernetes.node -d 'Name of this node in Kubernetes: its pods are watched, and none without it [env: SENTRY_KUBERNETES_NODE]' -r
complete -c sentry -n "__fish_sentry_needs_command" -l kubernetes.kubeconfig -d 'How to reach the API server; by default as a pod does, by its service account [env: SENTRY_KUBERNETES_KUBECONFIG]' -r -F
complete -c sentry -n "__fish_sentry_needs_command" -l kubernetes.pod-labels -d 'Labels of pods to show on their metrics, separated by commas [env: SENTRY_KUBERNETES_POD_LABELS]' -r
complete -c sentry -n "__fish_sentry_needs_command" -l otlp.endpoint -d 'Receiver to send the metrics to by OTLP, such as http://collector:4318; none by default [env: SENTRY_OTLP_ENDPOINT]' -r
complete -c sentry -n "__fish_sentry_needs_command" -l otlp.protocol -d 'How to send them [env: SENTRY_OTLP_PROTOCOL]' -r -f -a "http/protobuf\t''
grpc\t''"
complete -c sentry -n "__fish_sentry_needs_command" -l otlp.interval -d 'How often to send them, 100ms to 24h [env: SENTRY_OTLP_INTERVAL]' -r
complete -c sentry -n "__fish_sentry_needs_command" -l otlp.headers -d 'Headers to send along, name=value and separated by commas; tokens are better in the variable [env: SENTRY_OTLP_HEADERS]' -r
complete -c sentry -n "__fish_sentry_needs_command" -l otlp.ca-file -d 'Certificates (PEM) of the authorities to trust; by default the system\'s [env: SENTRY_OTLP_CA_FILE]' -r -F
complete -c sentry -n "__fish_sentry_needs_command" -l log.level -d 'Least severe level to log [env: SENTRY_LOG_LEVEL]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c sentry -n "__fish_sentry_needs_command" -l log.format -d 'Shape of a log line [env: SENTRY_LOG_FORMAT]' -r -f -a "text\t''
json\t''"
complete -c sentry -n "__fish_sentry_needs_command" -l path.procfs -d 'Where procfs is mounted [env: SENTRY_PATH_PROCFS]' -r -F
complete -c sentry -n "__fish_sentry_needs_command" -l path.sysfs -d 'Where sysfs is mounted [env: SENTRY_PATH_SYSFS]' -r -F
complete -c sentry -n "__fish_sentry_needs_command" -l path.rootfs -d 'Where the host\'s files are mounted, of which the state of container runtimes is read [env: SENTRY_PATH_ROOTFS]' -r -F
complete -c sentry -n "__fish_sentry_needs_command" -l probes -d 'Probes to attach, separated by commas [env: SENTRY_PROBES]' -r
complete -c sentry -n "__fish_sentry_needs_command" -l tcp.hook -d 'Kernel hook of the tcp probe; auto takes the best that works [env: SENTRY_TCP_HOOK]' -r -f -a "auto\t''
tp_btf\t''
kprobe\t''
tracepoint\t''"
complete -c sentry -n "__fish_sentry_needs_command" -l tcp.exemplars -d 'Show who and what is behind slow events of the tcp probe: the slowest, two a second (auto), or those that take so long [env: SENTRY_TCP_EXEMPLARS]' -r
complete -c sentry -n "__fish_sentry_needs_command" -l disk.hook -d 'Kernel hook of the disk probe; auto takes the best that works [env: SENTRY_DISK_HOOK]' -r -f -a "auto\t''
tp_btf\t''
raw_tp\t''
tracepoint\t''"
complete -c sentry -n "__fish_sentry_needs_command" -l disk.exemplars -d 'Show who and what is behind slow events of the disk probe: the slowest, two a second (auto), or those that take so long [env: SENTRY_DISK_EXEMPLARS]' -r
complete -c sentry -n "__fish_sentry_needs_command" -l gpu.hook -d 'Kernel hook of the gpu probe; auto takes the best that works [env: SENTRY_GPU_HOOK]' -r -f -a "auto\t''
uprobe_multi\t''
uprobe_cookie\t''
uprobe\t''"
complete -c sentry -n "__fish_sentry_needs_command" -s h -l help -d 'Print help'
complete -c sentry -n "__fish_sentry_needs_command" -s V -l version -d 'Print version'
complete -c sentry -n "__fish_sentry_needs_command" -f -a "agent" -d 'Run the agent; the same as no command'
complete -c sentry -n "__fish_sentry_needs_command" -f -a "check" -d 'Say which probes this kernel can run and how, then exit'
complete -c sentry -n "__fish_sentry_needs_command" -f -a "top" -d 'Show on this terminal what workloads do, anew each second'
complete -c sentry -n "__fish_sentry_needs_command" -f -a "trace" -d 'Print events as they happen, one a line'
complete -c sentry -n "__fish_sentry_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l config.file -d 'YAML file with any of the settings below; none is read by default [env: SENTRY_CONFIG_FILE]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l web.listen-address -d 'Address to listen on; :PORT means every address of the host [env: SENTRY_WEB_LISTEN_ADDRESS]' -r
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l web.telemetry-path -d 'Path under which the metrics are served [env: SENTRY_WEB_TELEMETRY_PATH]' -r
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l web.config.file -d 'TLS, client certificates and passwords: a file as Prometheus\' exporters read it [env: SENTRY_WEB_CONFIG_FILE]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l web.enable-lifecycle -d 'Read the configuration anew upon POST /-/reload, as upon SIGHUP [env: SENTRY_WEB_ENABLE_LIFECYCLE]' -r -f -a "true\t''
false\t''"
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l btf -d 'Type information (raw BTF) of a kernel that has none of its own [env: SENTRY_BTF]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l bpf.stats -d 'Measure what the probes cost, by the kernel\'s BPF statistics, while the agent runs [env: SENTRY_BPF_STATS]' -r -f -a "true\t''
false\t''"
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l overhead.budget -d 'Share of all CPUs\' time that Sentry may take; what is over it sheds exemplars, then time, then probes; or off [env: SENTRY_OVERHEAD_BUDGET]' -r
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l overhead.interval -d 'How often to look what it takes, 1s to 1h; it takes four times over the budget to shed something [env: SENTRY_OVERHEAD_INTERVAL]' -r
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l series.max -d 'Histograms kept in the kernel, 64 to 32000; the rest is counted together as "other" [env: SENTRY_SERIES_MAX]' -r
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l series.retention -d 'How long the series of a workload that is gone stays: 500ms, 90s, 2m or 1h [env: SENTRY_SERIES_RETENTION]' -r
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l metrics.buckets-per-octave -d 'Buckets shown for each doubling of time; the kernel always counts 4 [env: SENTRY_METRICS_BUCKETS_PER_OCTAVE]' -r -f -a "1\t''
2\t''
4\t''"
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l metrics.classic-histograms -d 'Show classic histograms beside the native ones in protobuf; the text formats always have them [env: SENTRY_METRICS_CLASSIC_HISTOGRAMS]' -r -f -a "true\t''
false\t''"
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l metrics.created -d 'Say since when each counter and histogram counts, in OpenMetrics and protobuf; series whose labels become others then begin anew [env: SENTRY_METRICS_CREATED]' -r -f -a "true\t''
false\t''"
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l aggregate-by -d 'What one set of labels on /metrics stands for [env: SENTRY_AGGREGATE_BY]' -r -f -a "container\t''
pod\t''
workload\t''
node\t''"
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l kubernetes.node -d 'Name of this node in Kubernetes: its pods are watched, and none without it [env: SENTRY_KUBERNETES_NODE]' -r
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l kubernetes.kubeconfig -d 'How to reach the API server; by default as a pod does, by its service account [env: SENTRY_KUBERNETES_KUBECONFIG]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l kubernetes.pod-labels -d 'Labels of pods to show on their metrics, separated by commas [env: SENTRY_KUBERNETES_POD_LABELS]' -r
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l otlp.endpoint -d 'Receiver to send the metrics to by OTLP, such as http://collector:4318; none by default [env: SENTRY_OTLP_ENDPOINT]' -r
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l otlp.protocol -d 'How to send them [env: SENTRY_OTLP_PROTOCOL]' -r -f -a "http/protobuf\t''
grpc\t''"
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l otlp.interval -d 'How often to send them, 100ms to 24h [env: SENTRY_OTLP_INTERVAL]' -r
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l otlp.headers -d 'Headers to send along, name=value and separated by commas; tokens are better in the variable [env: SENTRY_OTLP_HEADERS]' -r
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l otlp.ca-file -d 'Certificates (PEM) of the authorities to trust; by default the system\'s [env: SENTRY_OTLP_CA_FILE]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l log.level -d 'Least severe level to log [env: SENTRY_LOG_LEVEL]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l log.format -d 'Shape of a log line [env: SENTRY_LOG_FORMAT]' -r -f -a "text\t''
json\t''"
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l path.procfs -d 'Where procfs is mounted [env: SENTRY_PATH_PROCFS]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l path.sysfs -d 'Where sysfs is mounted [env: SENTRY_PATH_SYSFS]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l path.rootfs -d 'Where the host\'s files are mounted, of which the state of container runtimes is read [env: SENTRY_PATH_ROOTFS]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l probes -d 'Probes to attach, separated by commas [env: SENTRY_PROBES]' -r
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l tcp.hook -d 'Kernel hook of the tcp probe; auto takes the best that works [env: SENTRY_TCP_HOOK]' -r -f -a "auto\t''
tp_btf\t''
kprobe\t''
tracepoint\t''"
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l tcp.exemplars -d 'Show who and what is behind slow events of the tcp probe: the slowest, two a second (auto), or those that take so long [env: SENTRY_TCP_EXEMPLARS]' -r
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l disk.hook -d 'Kernel hook of the disk probe; auto takes the best that works [env: SENTRY_DISK_HOOK]' -r -f -a "auto\t''
tp_btf\t''
raw_tp\t''
tracepoint\t''"
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l disk.exemplars -d 'Show who and what is behind slow events of the disk probe: the slowest, two a second (auto), or those that take so long [env: SENTRY_DISK_EXEMPLARS]' -r
complete -c sentry -n "__fish_sentry_using_subcommand agent" -l gpu.hook -d 'Kernel hook of the gpu probe; auto takes the best that works [env: SENTRY_GPU_HOOK]' -r -f -a "auto\t''
uprobe_multi\t''
uprobe_cookie\t''
uprobe\t''"
complete -c sentry -n "__fish_sentry_using_subcommand agent" -s h -l help -d 'Print help'
complete -c sentry -n "__fish_sentry_using_subcommand check" -l format -d 'Shape of the output' -r -f -a "table\t''
json\t''"
complete -c sentry -n "__fish_sentry_using_subcommand check" -l config.file -d 'YAML file with any of the settings below; none is read by default [env: SENTRY_CONFIG_FILE]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand check" -l web.listen-address -d 'Address to listen on; :PORT means every address of the host [env: SENTRY_WEB_LISTEN_ADDRESS]' -r
complete -c sentry -n "__fish_sentry_using_subcommand check" -l web.telemetry-path -d 'Path under which the metrics are served [env: SENTRY_WEB_TELEMETRY_PATH]' -r
complete -c sentry -n "__fish_sentry_using_subcommand check" -l web.config.file -d 'TLS, client certificates and passwords: a file as Prometheus\' exporters read it [env: SENTRY_WEB_CONFIG_FILE]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand check" -l web.enable-lifecycle -d 'Read the configuration anew upon POST /-/reload, as upon SIGHUP [env: SENTRY_WEB_ENABLE_LIFECYCLE]' -r -f -a "true\t''
false\t''"
complete -c sentry -n "__fish_sentry_using_subcommand check" -l btf -d 'Type information (raw BTF) of a kernel that has none of its own [env: SENTRY_BTF]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand check" -l bpf.stats -d 'Measure what the probes cost, by the kernel\'s BPF statistics, while the agent runs [env: SENTRY_BPF_STATS]' -r -f -a "true\t''
false\t''"
complete -c sentry -n "__fish_sentry_using_subcommand check" -l overhead.budget -d 'Share of all CPUs\' time that Sentry may take; what is over it sheds exemplars, then time, then probes; or off [env: SENTRY_OVERHEAD_BUDGET]' -r
complete -c sentry -n "__fish_sentry_using_subcommand check" -l overhead.interval -d 'How often to look what it takes, 1s to 1h; it takes four times over the budget to shed something [env: SENTRY_OVERHEAD_INTERVAL]' -r
complete -c sentry -n "__fish_sentry_using_subcommand check" -l series.max -d 'Histograms kept in the kernel, 64 to 32000; the rest is counted together as "other" [env: SENTRY_SERIES_MAX]' -r
complete -c sentry -n "__fish_sentry_using_subcommand check" -l series.retention -d 'How long the series of a workload that is gone stays: 500ms, 90s, 2m or 1h [env: SENTRY_SERIES_RETENTION]' -r
complete -c sentry -n "__fish_sentry_using_subcommand check" -l metrics.buckets-per-octave -d 'Buckets shown for each doubling of time; the kernel always counts 4 [env: SENTRY_METRICS_BUCKETS_PER_OCTAVE]' -r -f -a "1\t''
2\t''
4\t''"
complete -c sentry -n "__fish_sentry_using_subcommand check" -l metrics.classic-histograms -d 'Show classic histograms beside the native ones in protobuf; the text formats always have them [env: SENTRY_METRICS_CLASSIC_HISTOGRAMS]' -r -f -a "true\t''
false\t''"
complete -c sentry -n "__fish_sentry_using_subcommand check" -l metrics.created -d 'Say since when each counter and histogram counts, in OpenMetrics and protobuf; series whose labels become others then begin anew [env: SENTRY_METRICS_CREATED]' -r -f -a "true\t''
false\t''"
complete -c sentry -n "__fish_sentry_using_subcommand check" -l aggregate-by -d 'What one set of labels on /metrics stands for [env: SENTRY_AGGREGATE_BY]' -r -f -a "container\t''
pod\t''
workload\t''
node\t''"
complete -c sentry -n "__fish_sentry_using_subcommand check" -l kubernetes.node -d 'Name of this node in Kubernetes: its pods are watched, and none without it [env: SENTRY_KUBERNETES_NODE]' -r
complete -c sentry -n "__fish_sentry_using_subcommand check" -l kubernetes.kubeconfig -d 'How to reach the API server; by default as a pod does, by its service account [env: SENTRY_KUBERNETES_KUBECONFIG]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand check" -l kubernetes.pod-labels -d 'Labels of pods to show on their metrics, separated by commas [env: SENTRY_KUBERNETES_POD_LABELS]' -r
complete -c sentry -n "__fish_sentry_using_subcommand check" -l otlp.endpoint -d 'Receiver to send the metrics to by OTLP, such as http://collector:4318; none by default [env: SENTRY_OTLP_ENDPOINT]' -r
complete -c sentry -n "__fish_sentry_using_subcommand check" -l otlp.protocol -d 'How to send them [env: SENTRY_OTLP_PROTOCOL]' -r -f -a "http/protobuf\t''
grpc\t''"
complete -c sentry -n "__fish_sentry_using_subcommand check" -l otlp.interval -d 'How often to send them, 100ms to 24h [env: SENTRY_OTLP_INTERVAL]' -r
complete -c sentry -n "__fish_sentry_using_subcommand check" -l otlp.headers -d 'Headers to send along, name=value and separated by commas; tokens are better in the variable [env: SENTRY_OTLP_HEADERS]' -r
complete -c sentry -n "__fish_sentry_using_subcommand check" -l otlp.ca-file -d 'Certificates (PEM) of the authorities to trust; by default the system\'s [env: SENTRY_OTLP_CA_FILE]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand check" -l log.level -d 'Least severe level to log [env: SENTRY_LOG_LEVEL]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c sentry -n "__fish_sentry_using_subcommand check" -l log.format -d 'Shape of a log line [env: SENTRY_LOG_FORMAT]' -r -f -a "text\t''
json\t''"
complete -c sentry -n "__fish_sentry_using_subcommand check" -l path.procfs -d 'Where procfs is mounted [env: SENTRY_PATH_PROCFS]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand check" -l path.sysfs -d 'Where sysfs is mounted [env: SENTRY_PATH_SYSFS]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand check" -l path.rootfs -d 'Where the host\'s files are mounted, of which the state of container runtimes is read [env: SENTRY_PATH_ROOTFS]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand check" -l probes -d 'Probes to attach, separated by commas [env: SENTRY_PROBES]' -r
complete -c sentry -n "__fish_sentry_using_subcommand check" -l tcp.hook -d 'Kernel hook of the tcp probe; auto takes the best that works [env: SENTRY_TCP_HOOK]' -r -f -a "auto\t''
tp_btf\t''
kprobe\t''
tracepoint\t''"
complete -c sentry -n "__fish_sentry_using_subcommand check" -l tcp.exemplars -d 'Show who and what is behind slow events of the tcp probe: the slowest, two a second (auto), or those that take so long [env: SENTRY_TCP_EXEMPLARS]' -r
complete -c sentry -n "__fish_sentry_using_subcommand check" -l disk.hook -d 'Kernel hook of the disk probe; auto takes the best that works [env: SENTRY_DISK_HOOK]' -r -f -a "auto\t''
tp_btf\t''
raw_tp\t''
tracepoint\t''"
complete -c sentry -n "__fish_sentry_using_subcommand check" -l disk.exemplars -d 'Show who and what is behind slow events of the disk probe: the slowest, two a second (auto), or those that take so long [env: SENTRY_DISK_EXEMPLARS]' -r
complete -c sentry -n "__fish_sentry_using_subcommand check" -l gpu.hook -d 'Kernel hook of the gpu probe; auto takes the best that works [env: SENTRY_GPU_HOOK]' -r -f -a "auto\t''
uprobe_multi\t''
uprobe_cookie\t''
uprobe\t''"
complete -c sentry -n "__fish_sentry_using_subcommand check" -s h -l help -d 'Print help'
complete -c sentry -n "__fish_sentry_using_subcommand top" -l url -d 'Agent to read, such as http://127.0.0.1:9763 or https://USER:PASSWORD@HOST:PORT; by default the one of this host, or none' -r
complete -c sentry -n "__fish_sentry_using_subcommand top" -l interval -d 'How often to read and draw, 200ms to 1m' -r
complete -c sentry -n "__fish_sentry_using_subcommand top" -l config.file -d 'YAML file with any of the settings below; none is read by default [env: SENTRY_CONFIG_FILE]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand top" -l web.listen-address -d 'Address to listen on; :PORT means every address of the host [env: SENTRY_WEB_LISTEN_ADDRESS]' -r
complete -c sentry -n "__fish_sentry_using_subcommand top" -l web.telemetry-path -d 'Path under which the metrics are served [env: SENTRY_WEB_TELEMETRY_PATH]' -r
complete -c sentry -n "__fish_sentry_using_subcommand top" -l web.config.file -d 'TLS, client certificates and passwords: a file as Prometheus\' exporters read it [env: SENTRY_WEB_CONFIG_FILE]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand top" -l web.enable-lifecycle -d 'Read the configuration anew upon POST /-/reload, as upon SIGHUP [env: SENTRY_WEB_ENABLE_LIFECYCLE]' -r -f -a "true\t''
false\t''"
complete -c sentry -n "__fish_sentry_using_subcommand top" -l btf -d 'Type information (raw BTF) of a kernel that has none of its own [env: SENTRY_BTF]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand top" -l bpf.stats -d 'Measure what the probes cost, by the kernel\'s BPF statistics, while the agent runs [env: SENTRY_BPF_STATS]' -r -f -a "true\t''
false\t''"
complete -c sentry -n "__fish_sentry_using_subcommand top" -l overhead.budget -d 'Share of all CPUs\' time that Sentry may take; what is over it sheds exemplars, then time, then probes; or off [env: SENTRY_OVERHEAD_BUDGET]' -r
complete -c sentry -n "__fish_sentry_using_subcommand top" -l overhead.interval -d 'How often to look what it takes, 1s to 1h; it takes four times over the budget to shed something [env: SENTRY_OVERHEAD_INTERVAL]' -r
complete -c sentry -n "__fish_sentry_using_subcommand top" -l series.max -d 'Histograms kept in the kernel, 64 to 32000; the rest is counted together as "other" [env: SENTRY_SERIES_MAX]' -r
complete -c sentry -n "__fish_sentry_using_subcommand top" -l series.retention -d 'How long the series of a workload that is gone stays: 500ms, 90s, 2m or 1h [env: SENTRY_SERIES_RETENTION]' -r
complete -c sentry -n "__fish_sentry_using_subcommand top" -l metrics.buckets-per-octave -d 'Buckets shown for each doubling of time; the kernel always counts 4 [env: SENTRY_METRICS_BUCKETS_PER_OCTAVE]' -r -f -a "1\t''
2\t''
4\t''"
complete -c sentry -n "__fish_sentry_using_subcommand top" -l metrics.classic-histograms -d 'Show classic histograms beside the native ones in protobuf; the text formats always have them [env: SENTRY_METRICS_CLASSIC_HISTOGRAMS]' -r -f -a "true\t''
false\t''"
complete -c sentry -n "__fish_sentry_using_subcommand top" -l metrics.created -d 'Say since when each counter and histogram counts, in OpenMetrics and protobuf; series whose labels become others then begin anew [env: SENTRY_METRICS_CREATED]' -r -f -a "true\t''
false\t''"
complete -c sentry -n "__fish_sentry_using_subcommand top" -l aggregate-by -d 'What one set of labels on /metrics stands for [env: SENTRY_AGGREGATE_BY]' -r -f -a "container\t''
pod\t''
workload\t''
node\t''"
complete -c sentry -n "__fish_sentry_using_subcommand top" -l kubernetes.node -d 'Name of this node in Kubernetes: its pods are watched, and none without it [env: SENTRY_KUBERNETES_NODE]' -r
complete -c sentry -n "__fish_sentry_using_subcommand top" -l kubernetes.kubeconfig -d 'How to reach the API server; by default as a pod does, by its service account [env: SENTRY_KUBERNETES_KUBECONFIG]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand top" -l kubernetes.pod-labels -d 'Labels of pods to show on their metrics, separated by commas [env: SENTRY_KUBERNETES_POD_LABELS]' -r
complete -c sentry -n "__fish_sentry_using_subcommand top" -l otlp.endpoint -d 'Receiver to send the metrics to by OTLP, such as http://collector:4318; none by default [env: SENTRY_OTLP_ENDPOINT]' -r
complete -c sentry -n "__fish_sentry_using_subcommand top" -l otlp.protocol -d 'How to send them [env: SENTRY_OTLP_PROTOCOL]' -r -f -a "http/protobuf\t''
grpc\t''"
complete -c sentry -n "__fish_sentry_using_subcommand top" -l otlp.interval -d 'How often to send them, 100ms to 24h [env: SENTRY_OTLP_INTERVAL]' -r
complete -c sentry -n "__fish_sentry_using_subcommand top" -l otlp.headers -d 'Headers to send along, name=value and separated by commas; tokens are better in the variable [env: SENTRY_OTLP_HEADERS]' -r
complete -c sentry -n "__fish_sentry_using_subcommand top" -l otlp.ca-file -d 'Certificates (PEM) of the authorities to trust; by default the system\'s [env: SENTRY_OTLP_CA_FILE]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand top" -l log.level -d 'Least severe level to log [env: SENTRY_LOG_LEVEL]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c sentry -n "__fish_sentry_using_subcommand top" -l log.format -d 'Shape of a log line [env: SENTRY_LOG_FORMAT]' -r -f -a "text\t''
json\t''"
complete -c sentry -n "__fish_sentry_using_subcommand top" -l path.procfs -d 'Where procfs is mounted [env: SENTRY_PATH_PROCFS]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand top" -l path.sysfs -d 'Where sysfs is mounted [env: SENTRY_PATH_SYSFS]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand top" -l path.rootfs -d 'Where the host\'s files are mounted, of which the state of container runtimes is read [env: SENTRY_PATH_ROOTFS]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand top" -l probes -d 'Probes to attach, separated by commas [env: SENTRY_PROBES]' -r
complete -c sentry -n "__fish_sentry_using_subcommand top" -l tcp.hook -d 'Kernel hook of the tcp probe; auto takes the best that works [env: SENTRY_TCP_HOOK]' -r -f -a "auto\t''
tp_btf\t''
kprobe\t''
tracepoint\t''"
complete -c sentry -n "__fish_sentry_using_subcommand top" -l tcp.exemplars -d 'Show who and what is behind slow events of the tcp probe: the slowest, two a second (auto), or those that take so long [env: SENTRY_TCP_EXEMPLARS]' -r
complete -c sentry -n "__fish_sentry_using_subcommand top" -l disk.hook -d 'Kernel hook of the disk probe; auto takes the best that works [env: SENTRY_DISK_HOOK]' -r -f -a "auto\t''
tp_btf\t''
raw_tp\t''
tracepoint\t''"
complete -c sentry -n "__fish_sentry_using_subcommand top" -l disk.exemplars -d 'Show who and what is behind slow events of the disk probe: the slowest, two a second (auto), or those that take so long [env: SENTRY_DISK_EXEMPLARS]' -r
complete -c sentry -n "__fish_sentry_using_subcommand top" -l gpu.hook -d 'Kernel hook of the gpu probe; auto takes the best that works [env: SENTRY_GPU_HOOK]' -r -f -a "auto\t''
uprobe_multi\t''
uprobe_cookie\t''
uprobe\t''"
complete -c sentry -n "__fish_sentry_using_subcommand top" -s h -l help -d 'Print help'
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l format -d 'Shape of the output: a table, or an object a line' -r -f -a "table\t''
json\t''"
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l min-duration -d 'Only what took so long at least, such as 500us or 10ms' -r
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l pid -d 'Only what this process began' -r
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l cgroup -d 'Only what belongs to this cgroup or one below it: its path from the root, as in the label cgroup' -r
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l pod -d 'Only what belongs to this pod' -r
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l port -d 'Only what has this TCP port at either end' -r
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l device -d 'Only I/O of this disk: its name, its path in /dev, or MAJOR:MINOR; or gaps of the GPU that the process knows by this number' -r
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l count -d 'End after so many events' -r
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l duration -d 'End after so long, such as 500ms, 10s or 5m' -r
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l config.file -d 'YAML file with any of the settings below; none is read by default [env: SENTRY_CONFIG_FILE]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l web.listen-address -d 'Address to listen on; :PORT means every address of the host [env: SENTRY_WEB_LISTEN_ADDRESS]' -r
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l web.telemetry-path -d 'Path under which the metrics are served [env: SENTRY_WEB_TELEMETRY_PATH]' -r
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l web.config.file -d 'TLS, client certificates and passwords: a file as Prometheus\' exporters read it [env: SENTRY_WEB_CONFIG_FILE]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l web.enable-lifecycle -d 'Read the configuration anew upon POST /-/reload, as upon SIGHUP [env: SENTRY_WEB_ENABLE_LIFECYCLE]' -r -f -a "true\t''
false\t''"
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l btf -d 'Type information (raw BTF) of a kernel that has none of its own [env: SENTRY_BTF]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l bpf.stats -d 'Measure what the probes cost, by the kernel\'s BPF statistics, while the agent runs [env: SENTRY_BPF_STATS]' -r -f -a "true\t''
false\t''"
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l overhead.budget -d 'Share of all CPUs\' time that Sentry may take; what is over it sheds exemplars, then time, then probes; or off [env: SENTRY_OVERHEAD_BUDGET]' -r
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l overhead.interval -d 'How often to look what it takes, 1s to 1h; it takes four times over the budget to shed something [env: SENTRY_OVERHEAD_INTERVAL]' -r
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l series.max -d 'Histograms kept in the kernel, 64 to 32000; the rest is counted together as "other" [env: SENTRY_SERIES_MAX]' -r
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l series.retention -d 'How long the series of a workload that is gone stays: 500ms, 90s, 2m or 1h [env: SENTRY_SERIES_RETENTION]' -r
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l metrics.buckets-per-octave -d 'Buckets shown for each doubling of time; the kernel always counts 4 [env: SENTRY_METRICS_BUCKETS_PER_OCTAVE]' -r -f -a "1\t''
2\t''
4\t''"
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l metrics.classic-histograms -d 'Show classic histograms beside the native ones in protobuf; the text formats always have them [env: SENTRY_METRICS_CLASSIC_HISTOGRAMS]' -r -f -a "true\t''
false\t''"
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l metrics.created -d 'Say since when each counter and histogram counts, in OpenMetrics and protobuf; series whose labels become others then begin anew [env: SENTRY_METRICS_CREATED]' -r -f -a "true\t''
false\t''"
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l aggregate-by -d 'What one set of labels on /metrics stands for [env: SENTRY_AGGREGATE_BY]' -r -f -a "container\t''
pod\t''
workload\t''
node\t''"
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l kubernetes.node -d 'Name of this node in Kubernetes: its pods are watched, and none without it [env: SENTRY_KUBERNETES_NODE]' -r
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l kubernetes.kubeconfig -d 'How to reach the API server; by default as a pod does, by its service account [env: SENTRY_KUBERNETES_KUBECONFIG]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l kubernetes.pod-labels -d 'Labels of pods to show on their metrics, separated by commas [env: SENTRY_KUBERNETES_POD_LABELS]' -r
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l otlp.endpoint -d 'Receiver to send the metrics to by OTLP, such as http://collector:4318; none by default [env: SENTRY_OTLP_ENDPOINT]' -r
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l otlp.protocol -d 'How to send them [env: SENTRY_OTLP_PROTOCOL]' -r -f -a "http/protobuf\t''
grpc\t''"
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l otlp.interval -d 'How often to send them, 100ms to 24h [env: SENTRY_OTLP_INTERVAL]' -r
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l otlp.headers -d 'Headers to send along, name=value and separated by commas; tokens are better in the variable [env: SENTRY_OTLP_HEADERS]' -r
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l otlp.ca-file -d 'Certificates (PEM) of the authorities to trust; by default the system\'s [env: SENTRY_OTLP_CA_FILE]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l log.level -d 'Least severe level to log [env: SENTRY_LOG_LEVEL]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l log.format -d 'Shape of a log line [env: SENTRY_LOG_FORMAT]' -r -f -a "text\t''
json\t''"
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l path.procfs -d 'Where procfs is mounted [env: SENTRY_PATH_PROCFS]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l path.sysfs -d 'Where sysfs is mounted [env: SENTRY_PATH_SYSFS]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l path.rootfs -d 'Where the host\'s files are mounted, of which the state of container runtimes is read [env: SENTRY_PATH_ROOTFS]' -r -F
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l probes -d 'Probes to attach, separated by commas [env: SENTRY_PROBES]' -r
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l tcp.hook -d 'Kernel hook of the tcp probe; auto takes the best that works [env: SENTRY_TCP_HOOK]' -r -f -a "auto\t''
tp_btf\t''
kprobe\t''
tracepoint\t''"
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l tcp.exemplars -d 'Show who and what is behind slow events of the tcp probe: the slowest, two a second (auto), or those that take so long [env: SENTRY_TCP_EXEMPLARS]' -r
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l disk.hook -d 'Kernel hook of the disk probe; auto takes the best that works [env: SENTRY_DISK_HOOK]' -r -f -a "auto\t''
tp_btf\t''
raw_tp\t''
tracepoint\t''"
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l disk.exemplars -d 'Show who and what is behind slow events of the disk probe: the slowest, two a second (auto), or those that take so long [env: SENTRY_DISK_EXEMPLARS]' -r
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l gpu.hook -d 'Kernel hook of the gpu probe; auto takes the best that works [env: SENTRY_GPU_HOOK]' -r -f -a "auto\t''
uprobe_multi\t''
uprobe_cookie\t''
uprobe\t''"
complete -c sentry -n "__fish_sentry_using_subcommand trace" -l closed -d 'TCP connections that close, with how long they lived and their bytes, in place of handshakes and of connects that fail'
complete -c sentry -n "__fish_sentry_using_subcommand trace" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sentry -n "__fish_sentry_using_subcommand help; and not __fish_seen_subcommand_from agent check top trace help" -f -a "agent" -d 'Run the agent; the same as no command'
complete -c sentry -n "__fish_sentry_using_subcommand help; and not __fish_seen_subcommand_from agent check top trace help" -f -a "check" -d 'Say which probes this kernel can run and how, then exit'
complete -c sentry -n "__fish_sentry_using_subcommand help; and not __fish_seen_subcommand_from agent check top trace help" -f -a "top" -d 'Show on this terminal what workloads do, anew each second'
complete -c sentry -n "__fish_sentry_using_subcommand help; and not __fish_seen_subcommand_from agent check top trace help" -f -a "trace" -d 'Print events as they happen, one a line'
complete -c sentry -n "__fish_sentry_using_subcommand help; and not __fish_seen_subcommand_from agent check top trace help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
