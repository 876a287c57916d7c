_sentry() {
    local i cur prev opts cmd
    COMPREPLY=()
    if [[ "${BASH_VERSINFO[0]}" -ge 4 ]]; then
        cur="$2"
    else
        cur="${COMP_WORDS[COMP_CWORD]}"
    fi
    prev="$3"
    cmd=""
    opts=""

    for i in "${COMP_WORDS[@]:0:COMP_CWORD}"
    do
        case "${cmd},${i}" in
            ",$1")
                cmd="sentry"
                ;;
            sentry,agent)
                cmd="sentry__subcmd__agent"
                ;;
            sentry,check)
                cmd="sentry__subcmd__check"
                ;;
            sentry,help)
                cmd="sentry__subcmd__help"
                ;;
            sentry,top)
                cmd="sentry__subcmd__top"
                ;;
            sentry,trace)
                cmd="sentry__subcmd__trace"
                ;;
            sentry__subcmd__help,agent)
                cmd="sentry__subcmd__help__subcmd__agent"
                ;;
            sentry__subcmd__help,check)
                cmd="sentry__subcmd__help__subcmd__check"
                ;;
            sentry__subcmd__help,help)
                cmd="sentry__subcmd__help__subcmd__help"
                ;;
            sentry__subcmd__help,top)
                cmd="sentry__subcmd__help__subcmd__top"
                ;;
            sentry__subcmd__help,trace)
                cmd="sentry__subcmd__help__subcmd__trace"
                ;;
            *)
                ;;
        esac
    done

    case "${cmd}" in
        sentry)
            opts="-h -V --config.file --web.listen-address --web.telemetry-path --web.config.file --web.enable-lifecycle --btf --bpf.stats --overhead.budget --overhead.interval --series.max --series.retention --metrics.buckets-per-octave --metrics.classic-histograms --metrics.created --aggregate-by --kubernetes.node --kubernetes.kubeconfig --kubernetes.pod-labels --otlp.endpoint --otlp.protocol --otlp.interval --otlp.headers --otlp.ca-file --log.level --log.format --path.procfs --path.sysfs --path.rootfs --probes --tcp.hook --tcp.exemplars --disk.hook --disk.exemplars --gpu.hook --help --version agent check top trace help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 1 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --config.file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.listen-address)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.telemetry-path)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.config.file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.enable-lifecycle)
                    COMPREPLY=($(compgen -W "true false" -- "${cur}"))
                    return 0
                    ;;
                --btf)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --bpf.stats)
                    COMPREPLY=($(compgen -W "true false" -- "${cur}"))
                    return 0
                    ;;
                --overhead.budget)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --overhead.interval)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --series.max)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --series.retention)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --metrics.buckets-per-octave)
                    COMPREPLY=($(compgen -W "1 2 4" -- "${cur}"))
                    return 0
                    ;;
                --metrics.classic-histograms)
                    COMPREPLY=($(compgen -W "true false" -- "${cur}"))
                    return 0
                    ;;
                --metrics.created)
                    COMPREPLY=($(compgen -W "true false" -- "${cur}"))
                    return 0
                    ;;
                --aggregate-by)
                    COMPREPLY=($(compgen -W "container pod workload node" -- "${cur}"))
                    return 0
                    ;;
                --kubernetes.node)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --kubernetes.kubeconfig)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --kubernetes.pod-labels)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --otlp.endpoint)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --otlp.protocol)
                    COMPREPLY=($(compgen -W "http/protobuf grpc" -- "${cur}"))
                    return 0
                    ;;
                --otlp.interval)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --otlp.headers)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --otlp.ca-file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log.level)
                    COMPREPLY=($(compgen -W "error warn info debug trace" -- "${cur}"))
                    return 0
                    ;;
                --log.format)
                    COMPREPLY=($(compgen -W "text json" -- "${cur}"))
                    return 0
                    ;;
                --path.procfs)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --path.sysfs)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --path.rootfs)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --probes)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --tcp.hook)
                    COMPREPLY=($(compgen -W "auto tp_btf kprobe tracepoint" -- "${cur}"))
                    return 0
                    ;;
                --tcp.exemplars)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --disk.hook)
                    COMPREPLY=($(compgen -W "auto tp_btf raw_tp tracepoint" -- "${cur}"))
                    return 0
                    ;;
                --disk.exemplars)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --gpu.hook)
                    COMPREPLY=($(compgen -W "auto uprobe_multi uprobe_cookie uprobe" -- "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        sentry__subcmd__agent)
            opts="-h --config.file --web.listen-address --web.telemetry-path --web.config.file --web.enable-lifecycle --btf --bpf.stats --overhead.budget --overhead.interval --series.max --series.retention --metrics.buckets-per-octave --metrics.classic-histograms --metrics.created --aggregate-by --kubernetes.node --kubernetes.kubeconfig --kubernetes.pod-labels --otlp.endpoint --otlp.protocol --otlp.interval --otlp.headers --otlp.ca-file --log.level --log.format --path.procfs --path.sysfs --path.rootfs --probes --tcp.hook --tcp.exemplars --disk.hook --disk.exemplars --gpu.hook --help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --config.file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.listen-address)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.telemetry-path)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.config.file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.enable-lifecycle)
                    COMPREPLY=($(compgen -W "true false" -- "${cur}"))
                    return 0
                    ;;
                --btf)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --bpf.stats)
                    COMPREPLY=($(compgen -W "true false" -- "${cur}"))
                    return 0
                    ;;
                --overhead.budget)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --overhead.interval)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --series.max)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --series.retention)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --metrics.buckets-per-octave)
                    COMPREPLY=($(compgen -W "1 2 4" -- "${cur}"))
                    return 0
                    ;;
                --metrics.classic-histograms)
                    COMPREPLY=($(compgen -W "true false" -- "${cur}"))
                    return 0
                    ;;
                --metrics.created)
                    COMPREPLY=($(compgen -W "true false" -- "${cur}"))
                    return 0
                    ;;
                --aggregate-by)
                    COMPREPLY=($(compgen -W "container pod workload node" -- "${cur}"))
                    return 0
                    ;;
                --kubernetes.node)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --kubernetes.kubeconfig)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --kubernetes.pod-labels)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --otlp.endpoint)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --otlp.protocol)
                    COMPREPLY=($(compgen -W "http/protobuf grpc" -- "${cur}"))
                    return 0
                    ;;
                --otlp.interval)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --otlp.headers)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --otlp.ca-file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log.level)
                    COMPREPLY=($(compgen -W "error warn info debug trace" -- "${cur}"))
                    return 0
                    ;;
                --log.format)
                    COMPREPLY=($(compgen -W "text json" -- "${cur}"))
                    return 0
                    ;;
                --path.procfs)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --path.sysfs)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --path.rootfs)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --probes)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --tcp.hook)
                    COMPREPLY=($(compgen -W "auto tp_btf kprobe tracepoint" -- "${cur}"))
                    return 0
                    ;;
                --tcp.exemplars)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --disk.hook)
                    COMPREPLY=($(compgen -W "auto tp_btf raw_tp tracepoint" -- "${cur}"))
                    return 0
                    ;;
                --disk.exemplars)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --gpu.hook)
                    COMPREPLY=($(compgen -W "auto uprobe_multi uprobe_cookie uprobe" -- "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        sentry__subcmd__check)
            opts="-h --format --config.file --web.listen-address --web.telemetry-path --web.config.file --web.enable-lifecycle --btf --bpf.stats --overhead.budget --overhead.interval --series.max --series.retention --metrics.buckets-per-octave --metrics.classic-histograms --metrics.created --aggregate-by --kubernetes.node --kubernetes.kubeconfig --kubernetes.pod-labels --otlp.endpoint --otlp.protocol --otlp.interval --otlp.headers --otlp.ca-file --log.level --log.format --path.procfs --path.sysfs --path.rootfs --probes --tcp.hook --tcp.exemplars --disk.hook --disk.exemplars --gpu.hook --help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --format)
                    COMPREPLY=($(compgen -W "table json" -- "${cur}"))
                    return 0
                    ;;
                --config.file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.listen-address)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.telemetry-path)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.config.file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.enable-lifecycle)
                    COMPREPLY=($(compgen -W "true false" -- "${cur}"))
                    return 0
                    ;;
                --btf)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --bpf.stats)
                    COMPREPLY=($(compgen -W "true false" -- "${cur}"))
                    return 0
                    ;;
                --overhead.budget)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --overhead.interval)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --series.max)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --series.retention)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --metrics.buckets-per-octave)
                    COMPREPLY=($(compgen -W "1 2 4" -- "${cur}"))
                    return 0
                    ;;
                --metrics.classic-histograms)
                    COMPREPLY=($(compgen -W "true false" -- "${cur}"))
                    return 0
                    ;;
                --metrics.created)
                    COMPREPLY=($(compgen -W "true false" -- "${cur}"))
                    return 0
                    ;;
                --aggregate-by)
                    COMPREPLY=($(compgen -W "container pod workload node" -- "${cur}"))
                    return 0
                    ;;
                --kubernetes.node)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --kubernetes.kubeconfig)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --kubernetes.pod-labels)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --otlp.endpoint)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --otlp.protocol)
                    COMPREPLY=($(compgen -W "http/protobuf grpc" -- "${cur}"))
                    return 0
                    ;;
                --otlp.interval)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --otlp.headers)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --otlp.ca-file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log.level)
                    COMPREPLY=($(compgen -W "error warn info debug trace" -- "${cur}"))
                    return 0
                    ;;
                --log.format)
                    COMPREPLY=($(compgen -W "text json" -- "${cur}"))
                    return 0
                    ;;
                --path.procfs)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --path.sysfs)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --path.rootfs)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --probes)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --tcp.hook)
                    COMPREPLY=($(compgen -W "auto tp_btf kprobe tracepoint" -- "${cur}"))
                    return 0
                    ;;
                --tcp.exemplars)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --disk.hook)
                    COMPREPLY=($(compgen -W "auto tp_btf raw_tp tracepoint" -- "${cur}"))
                    return 0
                    ;;
                --disk.exemplars)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --gpu.hook)
                    COMPREPLY=($(compgen -W "auto uprobe_multi uprobe_cookie uprobe" -- "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        sentry__subcmd__help)
            opts="agent check top trace help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        sentry__subcmd__help__subcmd__agent)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        sentry__subcmd__help__subcmd__check)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        sentry__subcmd__help__subcmd__help)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        sentry__subcmd__help__subcmd__top)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        sentry__subcmd__help__subcmd__trace)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        sentry__subcmd__top)
            opts="-h --url --interval --config.file --web.listen-address --web.telemetry-path --web.config.file --web.enable-lifecycle --btf --bpf.stats --overhead.budget --overhead.interval --series.max --series.retention --metrics.buckets-per-octave --metrics.classic-histograms --metrics.created --aggregate-by --kubernetes.node --kubernetes.kubeconfig --kubernetes.pod-labels --otlp.endpoint --otlp.protocol --otlp.interval --otlp.headers --otlp.ca-file --log.level --log.format --path.procfs --path.sysfs --path.rootfs --probes --tcp.hook --tcp.exemplars --disk.hook --disk.exemplars --gpu.hook --help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --url)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --interval)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --config.file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.listen-address)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.telemetry-path)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.config.file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.enable-lifecycle)
                    COMPREPLY=($(compgen -W "true false" -- "${cur}"))
                    return 0
                    ;;
                --btf)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --bpf.stats)
                    COMPREPLY=($(compgen -W "true false" -- "${cur}"))
                    return 0
                    ;;
                --overhead.budget)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --overhead.interval)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --series.max)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --series.retention)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --metrics.buckets-per-octave)
                    COMPREPLY=($(compgen -W "1 2 4" -- "${cur}"))
                    return 0
                    ;;
                --metrics.classic-histograms)
                    COMPREPLY=($(compgen -W "true false" -- "${cur}"))
                    return 0
                    ;;
                --metrics.created)
                    COMPREPLY=($(compgen -W "true false" -- "${cur}"))
                    return 0
                    ;;
                --aggregate-by)
                    COMPREPLY=($(compgen -W "container pod workload node" -- "${cur}"))
                    return 0
                    ;;
                --kubernetes.node)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --kubernetes.kubeconfig)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --kubernetes.pod-labels)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --otlp.endpoint)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --otlp.protocol)
                    COMPREPLY=($(compgen -W "http/protobuf grpc" -- "${cur}"))
                    return 0
                    ;;
                --otlp.interval)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --otlp.headers)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --otlp.ca-file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log.level)
                    COMPREPLY=($(compgen -W "error warn info debug trace" -- "${cur}"))
                    return 0
                    ;;
                --log.format)
                    COMPREPLY=($(compgen -W "text json" -- "${cur}"))
                    return 0
                    ;;
                --path.procfs)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --path.sysfs)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --path.rootfs)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --probes)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --tcp.hook)
                    COMPREPLY=($(compgen -W "auto tp_btf kprobe tracepoint" -- "${cur}"))
                    return 0
                    ;;
                --tcp.exemplars)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --disk.hook)
                    COMPREPLY=($(compgen -W "auto tp_btf raw_tp tracepoint" -- "${cur}"))
                    return 0
                    ;;
                --disk.exemplars)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --gpu.hook)
                    COMPREPLY=($(compgen -W "auto uprobe_multi uprobe_cookie uprobe" -- "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        sentry__subcmd__trace)
            opts="-h --format --closed --min-duration --pid --cgroup --pod --port --device --count --duration --config.file --web.listen-address --web.telemetry-path --web.config.file --web.enable-lifecycle --btf --bpf.stats --overhead.budget --overhead.interval --series.max --series.retention --metrics.buckets-per-octave --metrics.classic-histograms --metrics.created --aggregate-by --kubernetes.node --kubernetes.kubeconfig --kubernetes.pod-labels --otlp.endpoint --otlp.protocol --otlp.interval --otlp.headers --otlp.ca-file --log.level --log.format --path.procfs --path.sysfs --path.rootfs --probes --tcp.hook --tcp.exemplars --disk.hook --disk.exemplars --gpu.hook --help tcp disk gpu"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --format)
                    COMPREPLY=($(compgen -W "table json" -- "${cur}"))
                    return 0
                    ;;
                --min-duration)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --pid)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --cgroup)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --pod)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --port)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --device)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --count)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --duration)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --config.file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.listen-address)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.telemetry-path)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.config.file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.enable-lifecycle)
                    COMPREPLY=($(compgen -W "true false" -- "${cur}"))
                    return 0
                    ;;
                --btf)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --bpf.stats)
                    COMPREPLY=($(compgen -W "true false" -- "${cur}"))
                    return 0
                    ;;
                --overhead.budget)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --overhead.interval)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --series.max)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --series.retention)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --metrics.buckets-per-octave)
                    COMPREPLY=($(compgen -W "1 2 4" -- "${cur}"))
                    return 0
                    ;;
                --metrics.classic-histograms)
                    COMPREPLY=($(compgen -W "true false" -- "${cur}"))
                    return 0
                    ;;
                --metrics.created)
                    COMPREPLY=($(compgen -W "true false" -- "${cur}"))
                    return 0
                    ;;
                --aggregate-by)
                    COMPREPLY=($(compgen -W "container pod workload node" -- "${cur}"))
                    return 0
                    ;;
                --kubernetes.node)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --kubernetes.kubeconfig)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --kubernetes.pod-labels)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --otlp.endpoint)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --otlp.protocol)
                    COMPREPLY=($(compgen -W "http/protobuf grpc" -- "${cur}"))
                    return 0
                    ;;
                --otlp.interval)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --otlp.headers)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --otlp.ca-file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log.level)
                    COMPREPLY=($(compgen -W "error warn info debug trace" -- "${cur}"))
                    return 0
                    ;;
                --log.format)
                    COMPREPLY=($(compgen -W "text json" -- "${cur}"))
                    return 0
                    ;;
                --path.procfs)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --path.sysfs)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --path.rootfs)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --probes)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --tcp.hook)
                    COMPREPLY=($(compgen -W "auto tp_btf kprobe tracepoint" -- "${cur}"))
                    return 0
                    ;;
                --tcp.exemplars)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --disk.hook)
                    COMPREPLY=($(compgen -W "auto tp_btf raw_tp tracepoint" -- "${cur}"))
                    return 0
                    ;;
                --disk.exemplars)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --gpu.hook)
                    COMPREPLY=($(compgen -W "auto uprobe_multi uprobe_cookie uprobe" -- "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
    esac
}

if [[ "${BASH_VERSINFO[0]}" -eq 4 && "${BASH_VERSINFO[1]}" -ge 4 || "${BASH_VERSINFO[0]}" -gt 4 ]]; then
    complete -F _sentry -o nosort -o bashdefault -o default sentry
else
    complete -F _sentry -o bashdefault -o default sentry
fi
