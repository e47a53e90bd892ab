# A warm Perl: one compiled script, from which each request's process is forked.
#
# Started as `perl FLAGS -I<here> -mperl_template=<machine>,<file>[,named] SCRIPT`, so this
# file is compiled before the script. `import` examines the script by compiling it once in
# a process of its own (perl_probe.pl); then Perl compiles it here. The INIT block,
# the first of all, serves the control socket, and returns in the children only:
# there the script goes on as if it had been started for that request.
#
# The wire protocol is that of templates.py. What is kept of a plain run, what is
# not, and how that is found out: docs/warm-cgi.md.
#
# No module is used, not even strict: the script would find it loaded.

package perl_template;

BEGIN {
    $^H |= 0x602;              # use strict
    ${^WARNING_BITS} = '';     # no warnings, also under -w
}

# System calls by machine: the names of Linux's asm/unistd.h.
my @CALLS = qw(read write close lseek dup3 openat recvmsg clone setsid prctl statx
    memfd_create exit_group getitimer getrusage get_robust_list set_robust_list);
my %NUMBERS = (
    x86_64  => [0, 1, 3, 8, 292, 257, 47, 56, 112, 157, 332, 319, 231, 36, 98, 274, 273],
    aarch64 => [63, 64, 57, 62, 24, 56, 212, 220, 157, 167, 291, 279, 94, 102, 165, 100, 99],
    riscv64 => [63, 64, 57, 62, 24, 56, 212, 220, 157, 167, 291, 279, 94, 102, 165, 100, 99],
    ppc64le => [3, 4, 6, 19, 316, 286, 342, 120, 66, 171, 383, 360, 234, 105, 77, 299, 300],
    s390x   => [3, 4, 6, 19, 326, 288, 372, 120, 66, 172, 379, 350, 248, 105, 77, 305, 304],
    i386    => [3, 4, 6, 19, 330, 295, 372, 120, 66, 172, 383, 356, 252, 105, 77, 312, 311],
    armhf   => [3, 4, 6, 19, 358, 322, 297, 120, 66, 172, 397, 385, 248, 105, 77, 339, 338],
);
our %NR;

# What a module loads by itself, as soon as its commonest functions are called.
my %LATER = ('CGI.pm' => [qw(HTML/Entities.pm CGI/Cookie.pm)]);

my ($EINTR, $ENOEXEC, $EAGAIN, $ECHILD, $ENOTSUP, $ESTALE) = (4, 8, 11, 10, 95, 116);
my ($AT_FDCWD, $O_CLOEXEC, $MSG_TRUNC, $MSG_CTRUNC) = (-100, 02000000, 0x20, 0x08);
my $CLONE = 17 | 0x8000 | 0x200000 | 0x1000000;    # SIGCHLD, PARENT, CHILD_CLEARTID, CHILD_SETTID
my ($PR_SET_PDEATHSIG, $PR_SET_NAME, $PR_GET_TID_ADDRESS) = (1, 15, 40);

my $PACKET_BYTES = 64 * 1024;
my $SAID_BYTES   = 64 * 1024;
# Whatever went stale unnoticed is so for no longer.
my $AGE_S = 3600;
# A script may write what it read when it was compiled: then no more than one template
# is started in that time.
my $CALM_S = 5;

# Variables that Perl, the C library or the loader look at on their own.
our $LOOKED_AT = qr/^(?:PERL|LC_|LD_|LANG|TZ|MALLOC_|GLIBC_|LOCPATH$|NLSPATH$)/;

our $control;
my ($directory, $arrived, $started_at, $is_s390);
our ($script, $home);    # its name, and its directory: where it is started
our %environ;            # as it was before the script was compiled
my @stand_ins;      # what fds 0, 1, 2 are while the script is compiled
my (@paths, @signatures);    # files that were used; "" is the signature of one that was not there
my (@absent);                # files that would be used if they were there
my %seen;           # variable that was looked at → value, undef if there was none
my @written;        # variables that were set or removed

sub call {
    my $name = shift;
    return syscall($NR{$name}, @_);
}

sub bytes {
    my $buffer = '';
    vec($buffer, $_[0] - 1, 8) = 0;    # a constant would be shared, and the kernel writes into it
    return $buffer;
}

# Files

my $statx = bytes(256);

# What changes when a file does: owner, mode, inode, size, ctime, mtime, device.
sub signature {
    my $path = $_[0];
    return '' if syscall($NR{statx}, $AT_FDCWD, $path, 0, 0x7ff, $statx) != 0;
    return substr($statx, 20, 28) . substr($statx, 96, 48);
}

# Inode and device.
sub place {
    my $path = $_[0];
    return '' if syscall($NR{statx}, $AT_FDCWD, $path, 0, 0x7ff, $statx) != 0;
    return substr($statx, 32, 8) . substr($statx, 136, 8);
}

sub slurp {
    my $path = $_[0];
    my $fd = call('openat', $AT_FDCWD, $path, $O_CLOEXEC, 0);
    return undef if $fd < 0;
    my ($all, $buffer) = ('', bytes(8192));
    while ((my $count = call('read', $fd, $buffer, 8192)) > 0) {
        $all .= substr($buffer, 0, $count);
    }
    call('close', $fd);
    return $all;
}

# Have fds 0, 1 and 2 be files in memory, where one can see what was done to them.
sub stand_in {
    my @had;
    for my $fd (0 .. 2) {
        my ($name, $unread) = ('tetrapylon', "\n");
        my $new = call('memfd_create', $name, 0);
        return "no memfd_create: $!" if $new < 0;
        call('write', $new, $unread, 1), call('lseek', $new, 0, 0) if $fd == 0;
        call('dup3', $new, $fd, 0) if $new != $fd;
        call('close', $new) if $new != $fd;
        push @had, place("/proc/self/fd/$fd");
    }
    @stand_ins = @had;
    return '';
}

sub said {
    my $size = call('lseek', 2, 0, 2);
    return '' if $size <= 0;
    my $text = bytes($SAID_BYTES);
    call('lseek', 2, 0, 0);
    my $count = call('read', 2, $text, $SAID_BYTES);
    call('lseek', 2, $size, 0);
    return $count > 0 ? substr($text, 0, $count) : '';
}

# Say why the open descriptors cannot be kept, or '' with those that are one of the
# standard streams (fd → which), and those of files to be opened anew (fd, offset).
sub descriptors {
    my %mine = map { $_ => 1 } @_;
    opendir(my $list, '/proc/self/fd') or return 'there is no /proc';
    my @fds = sort { $a <=> $b } map { /^(\d+)$/ ? $1 + 0 : () } readdir $list;
    closedir $list;
    my (%stream, @files);
    for my $fd (@fds) {
        my $what = readlink "/proc/self/fd/$fd";
        next if $mine{$fd} or not defined $what;    # the list's own
        my $identity = place("/proc/self/fd/$fd");
        my $is_file = (unpack('S', substr $statx, 28, 2) & 0170000) == 0100000;
        my ($which) = grep { $identity eq $stand_ins[$_] } 0 .. 2;
        if (defined $which) {
            $stream{$fd} = $which;
            next;
        }
        return "it has another standard stream while it is compiled" if $fd < 3;
        next if $what eq '/dev/null';
        my $info = slurp("/proc/self/fdinfo/$fd");
        my ($flags) = $info =~ /^flags:\s*([0-7]+)/m;
        return "it has $what open when it is compiled"
            if $what !~ m{^/} or not $is_file or oct($flags) & 3 or $info =~ /^lock:/m;
        push @files, [$fd, call('lseek', $fd, 0, 1), oct($flags) & $O_CLOEXEC, $what];
    }
    for my $fd (0 .. 2) {
        return "it closes a standard stream while it is compiled" if not defined $stream{$fd};
    }
    return '', \%stream, \@files;
}

# Give a file that is open a position of its own, for that is shared between processes.
sub open_anew {
    my ($fd, $offset, $flags) = @{ $_[0] };
    my $path = "/proc/self/fd/$fd";
    my $new = call('openat', $AT_FDCWD, $path, $O_CLOEXEC, 0);
    return 0 if $new < 0;
    call('lseek', $new, $offset, 0);
    call('dup3', $new, $fd, $flags);
    call('close', $new);
    return 1;
}

# Start

sub answer {
    my ($id, $number, $text) = @_;
    my $packet = $id . pack('i', $number) . $text;
    return call('write', $control, $packet, length $packet) > 0;
}

sub leave { call('exit_group', 0) }    # without END blocks and destructors

sub refuse {
    my ($errno, $reason) = @_;
    answer("\0" x 8, -$errno, $reason);
    leave();
}

sub import {
    my (undef, $machine, $file, $is_named) = @_;
    local ($?, $@, $_);
    my ($fd) = (delete $ENV{TETRAPYLON_WARM_FD} or '') =~ /^(\d+)$/ or return;
    @NR{@CALLS} = @{ $NUMBERS{$machine} or return };
    $is_s390 = $machine eq 's390x';
    $control = $fd + 0;
    $started_at = time;
    # By a match, which has them pass for clean under -T.
    ($directory) = shift(@INC) =~ /(.*)/s;
    ($script) = $0 =~ /(.*)/s;
    ($home, my $name) = $script =~ m{^(.*/)([^/]*)$}s or refuse($ENOTSUP, 'it has no directory');
    $home =~ s{(?<=.)/$}{};
    delete $INC{'perl_template.pm'};
    refuse($ENOTSUP, "Perl $] is too old") if $] < 5.016;    # $$ would be the template's
    # As the system names a process after the file that it was told to execute.
    call('prctl', $PR_SET_NAME, $name, 0, 0, 0) if $is_named;

    # What was opened is what was meant, and is still there: from now on, a change is seen.
    my $is_meant = signature($script) ne ''
        && unpack('H*', substr($statx, 32, 16) . substr($statx, 96, 12)) eq $file;
    refuse($ESTALE, 'it was changed meanwhile') if not $is_meant or not script_file();
    push @paths,      $script;
    push @signatures, signature($script);

    chdir $home or refuse($ENOTSUP, "no directory $home: $!");
    $arrived = readlink '/proc/self/cwd';
    %environ = %ENV;
    my $trouble = stand_in();
    refuse($ENOTSUP, $trouble) if $trouble;
    stand_in() if not examine();
    $! = 0;
}

# Learn from a process of its own, the probe, what the script does while it is compiled.
# True in the probe itself.
sub examine {
    pipe(my $verdict, my $tell) or refuse($ENOTSUP, "no pipe: $!");
    my $probe = fork;
    refuse($ENOTSUP, "no process: $!") if not defined $probe;
    if (not $probe) {
        close $verdict;
        call('prctl', $PR_SET_PDEATHSIG, 9, 0, 0, 0);
        # Both compile the script from the descriptor that it was opened with.
        open_anew(script_file());
        do "$directory/perl_probe.pl";
        perl_template::Probe::begin($tell);
        return 1;
    }
    close $tell;
    my ($words, $buffer) = ('', bytes(65536));
    while (1) {
        my $count = call('read', fileno $verdict, $buffer, 65536);
        next if $count < 0 and $! == $EINTR;
        last if $count <= 0;
        $words .= substr($buffer, 0, $count);
    }
    close $verdict;
    waitpid $probe, 0;
    if ($words eq '') {
        my ($line) = said() =~ /^(.{1,300}?)(?: \(you may need to install.*)?$/m;
        refuse($ENOEXEC, $line ? "it does not compile: $line" : 'it ends while it is compiled');
    }
    my ($is_kept, @rest) = unpack '(N/a*)*', $words;
    refuse($ENOTSUP, $rest[0]) if not $is_kept;
    my %list = map { $_ => [unpack '(N/a*)*', shift @rest] } qw(used absent read written);
    while (my ($path, $signature) = splice @{ $list{used} }, 0, 2) {
        push @paths,      $path;
        push @signatures, $signature;
    }
    @absent = @{ $list{absent} };
    @seen{ @{ $list{read} } } = @environ{ @{ $list{read} } };
    @written = @{ $list{written} };
    return 0;
}

sub script_file {
    my $wanted = signature($script) or return;
    for my $fd (3 .. 63) {
        next if $fd == $control or signature("/proc/self/fd/$fd") ne $wanted;
        return [$fd, call('lseek', $fd, 0, 1), $O_CLOEXEC];
    }
    return;
}

sub load_ahead {
    local ($@, $_, $SIG{__DIE__});
    local $SIG{__WARN__} = sub { };
    for my $name (map { @{ $LATER{$_} } } grep { $INC{$_} } keys %LATER) {
        eval { require $name } or delete $INC{$name};
    }
}

INIT {
    if (defined $control) {
        my ($errno, $status) = ($! + 0, $?);
        load_ahead();
        defined &perl_template::Probe::end ? perl_template::Probe::end() : serve();
        ($!, $?) = ($errno, $status);
    }
}

# Requests

sub is_stale {
    for my $index (0 .. $#paths) {
        if (syscall($NR{statx}, $AT_FDCWD, $paths[$index], 0, 0x7ff, $statx) != 0) {
            return 1 if $signatures[$index] ne '';
        }
        elsif (substr($statx, 20, 28) . substr($statx, 96, 48) ne $signatures[$index]) {
            return 1;
        }
    }
    return 0;
}

sub has_appeared {
    for my $path (@absent) {
        return 1 if syscall($NR{statx}, $AT_FDCWD, $path, 0, 0x7ff, $statx) == 0;
    }
    return 0;
}

# Whether the script would be compiled with this environment as it was.
sub is_same_environ {
    my $new = $_[0];
    for my $name (keys %seen, grep { $_ =~ $LOOKED_AT } keys %$new, keys %environ) {
        my $had = $environ{$name};
        my $has = $new->{$name};
        return 0 if defined $had ? (not defined $has or $has ne $had) : defined $has;
    }
    return 1;
}

# Whether libraries are loaded that may have asked to be told of forks.
sub has_foreign_libraries {
    my $maps = slurp('/proc/self/maps');
    my $program = readlink '/proc/self/exe';
    while ($maps =~ m{^\S+ ..x. .*? (/.*)$}mg) {
        my $file = $1;
        next if $file eq $program or $file =~ m{/auto/.*\.so$};
        next if $file =~ m{/(?:ld-|ld64|lib(?:c|m|dl|rt|pthread|crypt|util|nsl|resolv|perl|nss_\w+)[-.])[^/]*$};
        return 1;
    }
    return 0;
}

# What does not change between requests.
my ($stream, $files, $said, $taint, $is_clone, $tid, @robust, $here, %compiled);

sub prepare {
    (my $trouble, $stream, $files) = descriptors($control);
    refuse($ENOTSUP, $trouble) if $trouble;
    refuse($ESTALE, 'it was changed meanwhile') if is_stale() or has_appeared();
    $said = said();
    %compiled = map { exists $ENV{$_} ? ($_ => $ENV{$_}) : () } @written;
    ($here) = readlink('/proc/self/cwd') =~ /(.*)/s;
    $taint = ${^TAINT} ? substr($^X, 0, 0) : '';

    # Where the C library keeps this thread's number. Its own fork would renew it, and
    # register the list of robust locks; a clone that is told to, does the same.
    my ($address, $head, $length) = (pack 'L!', 0) x 3;
    $tid = 0;
    if (call('prctl', $PR_GET_TID_ADDRESS, $address, 0, 0, 0) == 0) {
        $tid = unpack 'L!', $address;
        my ($number) = $tid ? unpack 'L', unpack('P4', $address) : ();
        $tid = 0 if not defined $number or $number != $$;    # not glibc
    }
    call('get_robust_list', 0, $head, $length);
    @robust = map { unpack 'L!', $_ } $head, $length;
    $is_clone = ($tid and not has_foreign_libraries());
}

my ($packet, $ancillary) = (bytes($PACKET_BYTES + 4096), bytes(32));
my $WORD = length pack 'L!', 0;
my $GAP = $WORD == 8 ? 'x4' : '';

# The next request: its fields, and its descriptors if all of it has come.
sub receive {
    my $iovec = pack 'P L!', $packet, length $packet;
    while (1) {
        my $message = pack "L! I $GAP P L! P L! i $GAP",
            0, 0, $iovec, 1, $ancillary, length $ancillary, 0;
        my $count = call('recvmsg', $control, $message, 0);
        next if $count < 0 and $! == $EINTR;
        leave() if $count <= 0;
        my ($got, $flags) = (unpack "L! I $GAP L! L! L! L! i", $message)[5, 6];
        my ($length, undef, undef, @fds) = $got ? unpack 'L! i i i*', $ancillary : 0;
        $#fds = int(($length - $WORD) / 4) - 3;    # behind length, level and type
        my $is_whole = (@fds == 3 and not $flags & ($MSG_TRUNC | $MSG_CTRUNC));
        return $is_whole, \@fds, unpack '(N/a*)*', substr $packet, 0, $count;
    }
}

my ($looked_at, $is_over) = (0, 0);

# The errno of the answer, if this request cannot run here; 0 if it can.
sub refusal {
    my ($wanted, $cwd, $arguments, $environ) = @_;
    my $now = time;
    my $age = abs($now - $started_at);
    $is_over ||= $age > $AGE_S || is_stale() || $now != $looked_at && has_appeared();
    $looked_at = $now;
    return $age < $CALM_S ? $EAGAIN : $ESTALE if $is_over;
    return $EAGAIN if $wanted ne $script or $cwd ne $home or $arguments;
    return $EAGAIN if not is_same_environ($environ);
    if ($here ne $arrived) {
        return place('.') eq place($here) ? 0 : $ESTALE;
    }
    # The directory may be another one by now, of the same name.
    return chdir($cwd) ? 0 : $! + 0;
}

sub serve {
    prepare();
    my $helper = getppid;
    answer("\0" x 8, $$, '');
    while (1) {
        my ($is_whole, $fds, $id, $wanted, $cwd, $arguments, @pairs) = receive();
        my $refusal = $is_whole ? refusal($wanted, $cwd, $arguments, {@pairs}) : $EAGAIN;
        if (not $refusal) {
            my $pid = $is_clone ? clone() : fork_twice();
            if ($pid == 0) {
                $refusal = become($helper, $fds, @pairs);
                # The helper may have given up, and started it plain.
                answer($id, $refusal ? -$refusal : $$, '') or leave();
                leave() if $refusal;
                call('close', $control);
                call('write', 2, $said, length $said) if $said ne '';
                $^T = time;
                return;
            }
            $refusal = $! + 0 if $pid < 0;
        }
        call('close', $_) for @$fds;
        answer($id, -$refusal, '') if $refusal;
        leave() if $refusal == $ESTALE;
    }
}

# Make of the forked process one that was started for the request.
sub become {
    my ($helper, $fds, @pairs) = @_;
    if ($is_clone) {
        call('set_robust_list', @robust);
    }
    elsif (getppid != $helper) {
        return $ECHILD;
    }
    call('setsid');
    for my $fd (map { $_ + 0 } keys %$stream) {
        call('dup3', $fds->[$stream->{$fd}], $fd, $fd > 2 ? $O_CLOEXEC : 0);
    }
    call('close', $_) for @$fds;
    for my $file (@$files) {
        open_anew($file) or return $! + 0;
    }
    %ENV = ();
    while (my ($name, $value) = splice @pairs, 0, 2) {
        $ENV{$name} = $value . $taint;
    }
    for my $name (@written) {
        exists $compiled{$name} ? $ENV{$name} = $compiled{$name} : delete $ENV{$name};
    }
    return 0;
}

# A fork without the C library, whose child is the helper's. The order of the last two
# arguments differs between machines.
sub clone {
    return $is_s390
        ? call('clone', 0, $CLONE, 0, $tid, 0)
        : call('clone', $CLONE, 0, 0, $tid, $tid);
}

# As fork, but the new process is the helper's child; by glibc's own fork, which
# tells the libraries of it. The process between has gone before it returns.
sub fork_twice {
    local $?;
    local $SIG{CHLD} = 'DEFAULT';
    my $middle = fork;
    return -1 if not defined $middle;
    if ($middle) {
        waitpid $middle, 0;
        $! = $? >> 8;
        return $? ? -1 : 1;
    }
    my $between = $$;
    my $pid = fork;
    call('exit_group', defined $pid ? 0 : $! + 0) if $pid or not defined $pid;
    select undef, undef, undef, 0.0002 while getppid == $between;
    return 0;
}

1;
