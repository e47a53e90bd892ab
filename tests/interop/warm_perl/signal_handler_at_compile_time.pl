#!/usr/bin/perl
BEGIN { $SIG{USR1} = sub { print "compiled handler $$\n" =~ /\d/ ? "handled\n" : "" }; $SIG{PIPE} = 'IGNORE'; }
kill USR1 => $$;
print "$SIG{PIPE}\n";
