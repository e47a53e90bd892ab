# What a script does while it is compiled, watched in a process that ends with it.
#
# perl_template.pm forks this probe, which compiles the script with everything
# watched that can be: %ENV is tied; the clock, files, and what acts on the world are
# replaced by functions that take note. What cannot be the same for each request
# ends the probe, with a reason; the script then runs plain. So it is watched as it is
# written, and the template compiles it as it is, with nothing in its way.
#
# The verdict, in fields as on the wire: 1 and four lists (files that were used with
# their signatures, files that were absent, variables looked at, variables written),
# or 0 and the reason.

package perl_template::Probe;

BEGIN {
    $^H |= 0x600;              # use strict, but for references: handles come as names
    ${^WARNING_BITS} = '';
}

my $SEED = 20_011;
# Modules of Perl itself that look at the clock when they are loaded, and for nothing
# that an hour changes: which century two digits mean.
my $HARMLESS = qr{/Time/Local\.pm$};
my $STREAM = qr/^(?:STDIN|STDOUT|STDERR|ARGV|ARGVOUT)$/;

my ($tell, $first_number);
my (%used, %missing, %read, %written, %replaced);

# Verdicts

sub verdict {
    my $words = pack '(N/a*)*', @_;
    while ($words ne '') {
        my $count = perl_template::call('write', fileno $tell, $words, length $words);
        last if $count <= 0;
        substr($words, 0, $count) = '';
    }
    perl_template::leave();
}

# The nearest place that is the script's.
sub whence {
    for (my $level = 0; my ($package, $file, $line) = caller $level; $level++) {
        return ($file, $line) if $package !~ /^perl_template/;
    }
    return ($perl_template::script, 0);
}

sub refuse {
    my ($file, $line) = whence();
    verdict(0, "it $_[0] while it is compiled, at $file line $line");
}

# Files

sub absolute {
    my ($path) = @_;
    return $path =~ m{^/} ? $path : readlink('/proc/self/cwd') . "/$path";
}

sub note_file {
    my $path = absolute($_[0]);
    return if $path eq '/dev/null';
    refuse("reads $path") if $path =~ m{^/(?:dev|proc|sys)/};
    $used{$path} = perl_template::signature($path) if not exists $used{$path};
}

# A handle that is a bareword comes as its name.
sub handle {
    my ($name) = @_;
    return $name if ref $name or ref \$name eq 'GLOB' or $name =~ /::|'/;
    return "main::$name" if $name =~ $STREAM;
    for (my $level = 0; my ($package) = caller $level; $level++) {
        return "${package}::$name" if $package !~ /^perl_template/;
    }
}

sub watched_open {
    refuse('opens a file in a way that cannot be followed') if @_ < 2;
    my ($mode, $path) = @_[1, 2];
    if (@_ == 2) {
        ($mode, $path) = $mode =~ /^\s*(\+?(?:<|>>?)&?=?|\|)?\s*(.*?)\s*$/s;
        $mode = '<' if not defined $mode;
        $mode = '|' if $path =~ /\|$/;
    }
    refuse('starts a program') if $mode =~ /\|/;
    my $is_copy = $mode =~ /&/;
    if ($is_copy) {
        $path = handle($path) if not ref $path and $path !~ /^\d+$/;
    }
    elsif (not ref $path) {
        refuse('writes to ' . (defined $path ? absolute($path) : 'a file')) if $mode =~ /[>+]/;
        note_file($path);
    }
    my @more = @_[3 .. $#_];
    my $open = sub {
        return CORE::open($_[0], $mode . $path) if @_ == 1 and not ref $path and $is_copy;
        return CORE::open($_[0], $mode, $path, @more);
    };
    return $open->($_[0]) if not defined $_[0];    # gets a new handle
    return $open->(handle($_[0]));
}

sub watched_sysopen {
    my (undef, $path, $flags, @mode) = @_;
    refuse('writes to ' . absolute($path)) if $flags & 0103;    # O_ACCMODE, O_CREAT
    note_file($path);
    return CORE::sysopen($_[0], $path, $flags) if not defined $_[0];
    my $handle = handle($_[0]);
    return CORE::sysopen($handle, $path, $flags);
}

sub watched_opendir {
    note_file($_[1]);
    return CORE::opendir($_[0], $_[1]) if not defined $_[0];
    my $handle = handle($_[0]);
    return CORE::opendir($handle, $_[1]);
}

# The clock

sub note_clock {
    my ($file) = whence();
    refuse('looks at the clock') if $file !~ $HARMLESS;
}

sub watched_time      { note_clock(); CORE::time() }
sub watched_times     { note_clock(); CORE::times() }
sub watched_localtime { @_ ? CORE::localtime($_[0]) : do { note_clock(); CORE::localtime() } }
sub watched_gmtime    { @_ ? CORE::gmtime($_[0]) : do { note_clock(); CORE::gmtime() } }

# Time::HiRes has a clock of its own.
sub load_hires {
    my (undef, $name) = @_;
    return if $name ne 'Time/HiRes.pm';
    local @INC = grep { not ref } @INC;
    require Time::HiRes;
    for my $function (qw(time gettimeofday clock_gettime clock)) {
        my $original = defined &{"Time::HiRes::$function"} && \&{"Time::HiRes::$function"} or next;
        my $prototype = prototype $original;
        my $form = defined $prototype ? "($prototype)" : '';
        *{"Time::HiRes::$function"} = eval "sub $form { note_clock(); goto &\$original }";
    }
    my $nothing = '1;';
    return \$nothing;
}

# What acts on the world.
my %ACTS = (
    (map { $_ => 'changes files' }
            qw(unlink rename mkdir rmdir link symlink chmod chown utime truncate dbmopen)),
    (map { $_ => 'starts a process' } qw(fork readpipe)),
    (map { $_ => 'talks to others' } qw(connect bind kill)),
    (map { $_ => 'changes its process' } qw(chroot setpgrp setpriority alarm)),
    exit => 'ends',
);

# The environment

sub TIEHASH { return bless {%perl_template::environ}, $_[0] }

sub FETCH {
    my ($self, $name) = @_;
    $read{$name} = 1 if not $written{$name};
    return $self->{$name};
}

sub EXISTS {
    my ($self, $name) = @_;
    $read{$name} = 1 if not $written{$name};
    return exists $self->{$name};
}

sub STORE {
    my ($self, $name, $value) = @_;
    $written{$name} = 1;
    $self->{$name} = $value;
}

sub DELETE {
    my ($self, $name) = @_;
    $read{$name} = 1 if not $written{$name};
    $written{$name} = 1;
    return delete $self->{$name};
}

sub CLEAR    { refuse('clears the environment') }
sub FIRSTKEY { refuse('looks through the environment') }
sub SCALAR   { refuse('looks through the environment') }

# What is different in each process.

sub perl_template::Variable::TIESCALAR { my ($class, @self) = @_; return bless \@self, $class }
sub perl_template::Variable::STORE     { }

sub perl_template::Variable::FETCH {
    my ($what, $value) = @{ $_[0] };
    refuse("looks at $what");
    return $value;
}

sub replace {
    my ($name, $code) = @_;
    my $prototype = $name eq 'truncate' ? '*$' : prototype "CORE::$name";
    my $form = defined $prototype ? "($prototype)" : '';
    $replaced{$name} = eval "sub $form { \&\$code }";
    *{"CORE::GLOBAL::$name"} = $replaced{$name};
}

sub begin {
    ($tell) = @_;
    srand $SEED;
    $first_number = rand;
    srand $SEED;
    replace(open    => \&watched_open);
    replace(sysopen => \&watched_sysopen);
    replace(opendir => \&watched_opendir);
    replace(time    => \&watched_time);
    replace(times   => \&watched_times);
    replace(localtime => \&watched_localtime);
    replace(gmtime    => \&watched_gmtime);
    for my $name (sort keys %ACTS) {
        my $what = $ACTS{$name};
        replace($name => sub { refuse($what) });
    }
    unshift @INC, \&load_hires;
    push @INC, sub { $missing{ $_[1] } = 1; return };
    tie %ENV, __PACKAGE__;
    tie ${'$'}, 'perl_template::Variable', 'its process number', $$;
    tie ${"\x14"}, 'perl_template::Variable', 'the time of its start', $^T;
}

# When all is compiled.
sub end {
    untie %ENV;
    my $trouble = trouble();
    verdict(0, $trouble) if $trouble;
    verdict(1, map { pack '(N/a*)*', @$_ } [%used], absent(), [keys %read], [keys %written]);
}

sub trouble {
    for my $name (keys %replaced) {
        return "it replaces Perl's $name" if \&{"CORE::GLOBAL::$name"} != $replaced{$name};
    }
    return 'it draws random numbers while it is compiled' if rand != $first_number;
    return 'it uses threads' if $INC{'threads.pm'};
    my ($count) = perl_template::slurp('/proc/self/status') =~ /^Threads:\s*(\d+)/m;
    return 'it has threads when it is compiled' if $count != 1;
    my $usage = perl_template::bytes(256);
    perl_template::call('getrusage', -1, $usage);    # RUSAGE_CHILDREN
    return 'it starts a program while it is compiled' if $usage =~ /[^\0]/;
    my $timer = perl_template::bytes(64);
    for my $which (0 .. 2) {
        perl_template::call('getitimer', $which, $timer);
        return 'it sets a timer while it is compiled' if $timer =~ /[^\0]/;
    }
    return 'it shares memory when it is compiled'
        if perl_template::slurp('/proc/self/maps') =~ /^\S+ .w.s /m;
    my ($reason, undef, $files) = perl_template::descriptors($perl_template::control, fileno $tell);
    return $reason if $reason;
    note_file($_->[3]) for @$files;
    note_file($_) for @DynaLoader::dl_shared_objects;

    local $.;
    return 'it reads its input while it is compiled'
        if perl_template::call('lseek', 0, 0, 1) > 0 or not tied *STDIN and tell(STDIN) > 0;
    return 'it has output while it is compiled'
        if perl_template::call('lseek', 1, 0, 2) > 0 or not tied *STDOUT and tell(STDOUT) > 0;
    # Which may say the time, or anything.
    return 'it handles warnings while it is compiled'
        if $SIG{__WARN__} and perl_template::said() ne '';

    for my $name (keys %INC) {
        return "$name comes from nowhere" if ref $INC{$name};
        $used{ absolute($INC{$name}) } = perl_template::signature($INC{$name})
            if defined $INC{$name};
    }
    return '';
}

# Files that would be loaded instead of others, or that were looked for in vain.
sub absent {
    my @directories = map { absolute($_) } grep { not ref } @INC;
    my %absent;
    for my $name (keys %INC, grep { not exists $INC{$_} } keys %missing) {
        my $found = defined $INC{$name} ? absolute($INC{$name}) : '';
        for my $directory (@directories) {
            my $path = "$directory/$name";
            last if $path eq $found or $name =~ m{^/};
            $absent{$path} = 1 if perl_template::signature($path) eq '';
        }
    }
    return [keys %absent];
}

1;
