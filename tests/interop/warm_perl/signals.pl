#!/usr/bin/perl
$SIG{USR1} = sub { print "usr1\n" };
kill USR1 => $$;
print join(" ", map { "$_=" . ($SIG{$_} || "default") } grep { $_ ne "USR1" && $SIG{$_} } sort keys %SIG), "\n";
open my $s, '<', '/proc/self/status';
print grep { /^Sig(?:Blk|Ign)|^ShdPnd/ } <$s>;
local $SIG{ALRM} = sub { die "alarm\n" };
eval { alarm 1; select undef, undef, undef, 5; };
print "got $@";
$SIG{TERM} = 'DEFAULT';
$| = 1; print "bye\n";
kill TERM => $$; sleep 5;
