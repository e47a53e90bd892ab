#!/usr/bin/perl
# body: name=J%F6rg&text=a+b&text=c
# type: application/x-www-form-urlencoded
require "./lib/cgi-lib.pl";
$| = 1;
print "Content-type: text/html\n\n";
&ReadParse(*FORM);
foreach $key (sort keys %FORM) {
    ($value = $FORM{$key}) =~ s/\0/,/g;
    print "<li>$key = $value\n";
}
open(MAIL, "|cat > mail.txt") || die "no mail";
print MAIL "To: x\n\n$FORM{'name'}\n.\n";
close(MAIL);
print "mail $?\n";
open(COUNT, "+>>count") || die;
flock(COUNT, 2);
seek(COUNT, 0, 0);
$count = <COUNT>;
truncate(COUNT, 0);
print COUNT $count + 1;
close(COUNT);
$said = `echo shell; exit 3`;
print "$said $?\n";
open(SELF, $0);
$lines = grep { 1 } <SELF>;
print "lines $lines $.\n";
print $main'FORM{'name'} eq $FORM{name}, "\n";
warn "no newline";
die "at the end";
